"""One report model; JSON, Markdown, HTML and JUnit are renderings of it.

`model.Report` holds what was measured. `markdown.render`, `html.render`, `junit.render` and
`terminal.summary` show it; `figures` says what there is to say, `format` how a number is written,
and `details` what is shown of the facts and tables of a stage: a new stage needs no code here.
"""
