"""Figures and report, drawn from run directories and nothing else.

``data.RunData.load(run_dir)`` reads a finished run; ``figures.FIGURES`` lists what can be drawn, each a
``draw(run, variant)``; ``report.write_report(run_dir)`` draws everything and writes one page about it.
"""
