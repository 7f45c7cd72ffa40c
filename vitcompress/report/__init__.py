"""One report model; JSON, Markdown, HTML and JUnit are renderings of it."""
