"""RA-DIT's ablation: which jobs it starts, what it does not do again, and its table; the jobs made up."""

import pytest

from realm_jax.run_dir import RunDir, write_json_atomically
from tests.launch.stub_stages import load_launcher


@pytest.fixture(scope="module")
def launcher():
    return load_launcher("ra_dit")


@pytest.fixture
def work(launcher, tmp_path, monkeypatch):
    """An ablation whose jobs are noted; an evaluation leaves made-up figures."""
    made = launcher.RaDitAblation(
        RunDir.of(tmp_path / "ablation"), RunDir.of(tmp_path / "pretrain"), tmp_path / "corpus", (0, 1), ()
    )
    made.jobs = []

    def job(name, run, gin_file, seed, *bindings):
        made.jobs.append((name, run.path.name, gin_file, seed, bindings))
        if name == "evaluate":
            (model,) = [
                key
                for key, name in launcher.LANGUAGE_MODELS.items()
                if f"--gin.LANGUAGE_MODEL={made.of_seed(seed, name).path}" in bindings
            ]
            tuned = run.path.name != "pretrain"
            share = (0.1 + 0.3 * (model == "after") + 0.2 * tuned) + 0.02 * seed
            own = {"exact_match": share, "f1": share} | dict.fromkeys(launcher.RECALLS, 0.5 + 0.25 * tuned)
            rows = {"ra_dit": own, "closed_book": {"exact_match": 0.01, "f1": 0.02}, "random": {"exact_match": 0.03}}
            retriever = next(key for key in launcher.RETRIEVERS if made.of_retriever(seed, key).path == run.path)
            write_json_atomically(made.figures_file(seed, model, retriever), {"rows": rows})
        if name == "few_shot":
            (model,) = [
                key
                for key, name in launcher.LANGUAGE_MODELS.items()
                if f"--gin.LANGUAGE_MODEL={made.of_seed(seed, name).path}" in bindings
            ]
            (documents,) = [one.partition("=")[2] for one in bindings if one.startswith("--gin.few_shot.documents=")]
            nll = {"none": 9.0, "retrieved": 5.0, "random": 8.0}[documents] + 4 * (model == "before") + 0.5 * seed
            row = {"reference_nll": {"mean": nll, "standard_error": 0.1, "questions": 400}}
            write_json_atomically(made.likelihoods_file(seed, model, documents), {"rows": {"nq 0-shot": row}})

    monkeypatch.setattr(made, "job", job)
    return made


def test_each_seed_has_its_models_and_every_row_its_evaluation(launcher, work):
    work.go()
    names = [(name, run, gin_file) for name, run, gin_file, seed, _ in work.jobs if seed == 1]
    assert names == [
        ("train", "lm", "language_model_tiny"),
        ("retrieve", "pretrain", "ra_dit_lm_tiny"),
        ("train", "lm_ft", "ra_dit_lm_tiny"),
        ("train", "lm_instructed", "ra_dit_lm_tiny"),
        ("retrieve", "pretrain", "ra_dit_retriever_tiny"),
        ("train", "retriever_by_lm", "ra_dit_retriever_tiny"),
        ("retrieve", "pretrain", "ra_dit_retriever_tiny"),
        ("train", "retriever", "ra_dit_retriever_tiny"),
        *(
            call
            for runs in (
                ("pretrain", "retriever_by_lm", "retriever"),
                ("pretrain",),
                ("pretrain", "retriever_by_lm", "retriever"),
            )
            for call in (
                *(("evaluate", run, "ra_dit_tiny") for run in runs),
                *[("few_shot", "pretrain", "ra_dit_tiny")] * 3,
            )
        ),
    ]
    bindings = {(name, run): said for name, run, _, seed, said in work.jobs if seed == 1}
    assert set(launcher.INSTRUCTED) <= set(bindings["train", "lm_instructed"])
    assert not set(launcher.INSTRUCTED) & set(bindings["train", "lm_ft"])
    judged = str(work.retriever.retrieved(f"{work.label}-1-judged"))
    assert f"--gin.RETRIEVED={judged}" in bindings["train", "retriever"]
    assert f"--gin.RETRIEVED={judged}-before" in bindings["train", "retriever_by_lm"]
    judges = [
        (f"--gin.JUDGE={work.of_seed(1, model).path}" in said, f"--gin.retrieve.name={work.label}-1-{name}" in said)
        for (model, name), said in zip(
            (("lm", "judged-before"), ("lm_ft", "judged")),
            (
                said
                for _, _, gin_file, seed, said in work.jobs
                if seed == 1 and any("--gin.JUDGE" in one for one in said)
            ),
            strict=True,
        )
    ]
    assert judges == [(True, True)] * 2
    assert "--gin.train.seed=1" in bindings["train", "lm"]
    other = launcher.RaDitAblation(
        RunDir.of(work.run.path.parent / "b" / "ablation"), work.retriever, work.corpus, (0,), ()
    )
    assert other.label.startswith("ablation-") and other.label != work.label
    work.jobs.clear()
    work.go()
    assert [job for job in work.jobs if job[0] in ("evaluate", "few_shot")] == []


def test_the_table_has_means_and_spreads(launcher, work):
    work.go()
    lines = launcher.table(work.figures()).splitlines()
    assert lines[0] == "| | EM | F1 | EM, random documents | R@1 | R@5 | R@20 |"
    assert lines[2] == "| language model alone | 1.0 ± 0.0 | 2.0 ± 0.0 |  |  |  |  |"
    assert (
        lines[-1]
        == "| both, judged after LM-ft | 61.0 ± 1.4 | 61.0 ± 1.4 | 3.0 ± 0.0 | 75.0 ± 0.0 | 75.0 ± 0.0 | 75.0 ± 0.0 |"
    )


def test_the_likelihoods_have_their_own_table(launcher, work):
    work.go()
    lines = launcher.likelihood_table(work.likelihoods()).splitlines()
    assert lines[0] == "| −log p of the answer | no documents | retrieved | random |"
    assert lines[2:] == [
        "| language model | 13.25 ± 0.35 | 9.25 ± 0.35 | 12.25 ± 0.35 |",
        "| instruction tuning | 9.25 ± 0.35 | 5.25 ± 0.35 | 8.25 ± 0.35 |",
        "| LM-ft | 9.25 ± 0.35 | 5.25 ± 0.35 | 8.25 ± 0.35 |",
    ]


def test_what_the_command_line_refuses(launcher, capsys):
    for arguments in (["--seeds=a"], ["--what"]):
        with pytest.raises(SystemExit, match="2"):
            launcher.main(["--run_dir=x", "--retriever=y", *arguments])
    told = capsys.readouterr().err
    assert "--seeds: expected numbers with commas between, got 'a'" in told and "unknown arguments: --what" in told
