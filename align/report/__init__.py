"""The comparison page: run directories in, tables, figures and one self-contained HTML file out. Never imports torch.

arms.py       which runs are seeds of one arm, what the arms differ in, what they are called
stats.py      t-intervals over seeds and over prompts
inference.py  differences, their intervals and p-values, and families of them
matched.py    values at the same KL or number of tokens
checks.py     what makes a comparison unsound
tables.py     the summary: page, terminal, CSV
curves.py     what each figure shows        figures.py   how it is drawn
samples.py    completions side by side      page.py      the page
"""
