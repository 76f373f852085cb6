"""Instruction data of RA-DIT (Lin et al. 2023, arXiv:2310.01352): data sets, their templates, examples from a corpus."""
