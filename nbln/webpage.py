"""The report of a fit as one web page that needs nothing but itself."""

import base64
import html

import pandas as pd

import nbln
from nbln import pl, report
from nbln.pl.posterior import spread_over_genes
from nbln.pl.style import to_png
from nbln.questions.checks import extreme, worst_genes
from nbln.questions.diagnostics import doubts

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff;
       max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
h3 { font-size: 1rem; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; }
figcaption, .meaning { color: #555; font-size: .9rem; max-width: 44rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; vertical-align: top;
         border-bottom: 1px solid #ddd; }
td.warning { color: #a33c00; font-weight: 600; }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .2rem 1rem; }
dt { font-weight: 600; } dd { margin: 0; }
@media (max-width: 36rem) {
  th, td { padding-right: .5rem; } .notes td:last-child { overflow-wrap: anywhere; }
  table { font-size: .8rem; } dl { grid-template-columns: 1fr; } dd { margin-bottom: .5rem; }
}
"""
SHOWN_PAIRS = 30
UNSURE = (
    "<p class='meaning'>These correlations are point estimates and carry no interval. "
    "<code>nbln fit --draws 400</code>, or <code>result.sample_posterior()</code>, says how sure "
    "each of them is.</p>"
)
OF_DRAWS = (
    "accepted: shares of proposals that were taken. ess: effective draws. r_hat: 1 where chains "
    "agree. overdispersion: median over genes of φ, how far counts vary beyond counting noise and "
    "programs; residual_share: the part of it that is a gene's own variation of expression (d/φ). "
    "lfsr, error_probability and q in the table: probability of the other sign, of a wrong call, "
    "and its mean down to this pair; none is below half a draw in all draws."
)
MEANING = (
    "sigma: learned scales of the programs. variance: mean shares of a gene's variance of "
    "counts, by programs, of its own, by counting. pareto_k_95: 95 % quantile over cells of Pareto "
    "k̂; below 0.7 the cells' factors can be trusted. misfit: share of genes outside the "
    "predictive draws ({:.0%} are by chance); of misfit_residuals 1 % are by "
    "chance. far_genes: misfits of the mean that are off by a factor of 3 or more."
)


def page(result, checks, summary: pd.DataFrame, counts=None, truth=None, posterior=None) -> str:
    """The whole page.

    Parameters
    ----------
    checks, summary
        What `check` and `summary` gave.
    counts
        The counts of the fit; None where the result still has them.
    truth
        What simulated data were drawn from, as in `report.lines`.
    posterior
        Draws of the posterior; without them the page says that correlations carry no interval.
    """
    level = extreme(checks)
    parts = [
        "<h1>nbln: report of a fit</h1>",
        _sentences(report.lines(result, truth)),
        "<h2>Is it to be believed?</h2>",
        _summary(summary),
        f"<p class='meaning'>{MEANING.format(2 * level)}</p>",
    ]
    for title, caption, figure in _figures(result, checks, counts):
        parts.append(f"<h2>{html.escape(title)}</h2>{_picture(figure, title, caption)}")
    if result.has_programs:
        shown = "<p>No gene program was found.</p>"
        if result.w_prior_diagnostics["effective_rank"]:
            shown = _table(result.top_pairs(SHOWN_PAIRS).round(3), index=False)
        parts += ["<h2>Strongest gene pairs</h2>", shown]
        parts += [UNSURE] if posterior is None else _certainty(posterior)
    worst = worst_genes(checks, "zero_fraction").round(3).reset_index()
    parts += [
        "<h2>Genes whose zeros the model describes worst</h2>",
        f"<p class='meaning'>Only p-values within {level:.1g} of 0 or 1 are misfits.</p>",
        _table(worst, index=False),
    ]
    parts.append(f"<p>nbln {nbln.__version__}</p>")
    head = f'<meta charset="utf-8"><title>nbln report</title><style>{STYLE}</style>'
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}{view}</head>\n<body>{body}</body></html>'


def _certainty(posterior) -> list[str]:
    """How sure the correlations are: intervals, calls, network."""
    called = posterior.pairs()
    # Of the table and the figure no gene takes more than three rows.
    table = spread_over_genes(called, SHOWN_PAIRS)
    sentence = (
        f"{len(called):,} pairs are called: their correlation is beyond 0.3 in size, with its "
        "sign, and at most 5 % of the calls are expected to be wrong."
    )
    summary = posterior.summary()
    parts = ["<h2>How sure are the correlations?</h2>", f"<p>{sentence}</p>"]
    if said := "; ".join(doubts(summary)):
        parts.append(f"<p><b>With caution.</b> {html.escape(said)}.</p>")
    for title, caption, figure in (
        (
            "Pairs with their intervals",
            "Twenty of the surest, at most three of a gene; points are posterior means.",
            pl.plot_pair_intervals(posterior, pairs=table),
        ),
        (
            "Calls",
            "Left: pairs called at each false discovery rate. Right: the share of them expected to "
            "be wrong; it levels off where all pairs that are more likely right than wrong are "
            "called.",
            pl.plot_calls(posterior),
        ),
        (
            "Network of called pairs",
            "The strongest called pairs; red edges are positive, blue ones negative.",
            pl.plot_network(posterior, called),
        ),
    ):
        parts.append(f"<h3>{html.escape(title)}</h3>{_picture(figure, title, caption)}")
    return [
        *parts,
        _table(table.round(3), index=False),
        "<h3>How well are programs determined?</h3>",
        "<p class='meaning'>cosine: mean of a draw's loadings with the fit's. same: share of draws "
        "in which it is above 0.9. norm: size of the loadings, with its interval.</p>",
        _table(posterior.get_program_stability().round(3).reset_index(), index=False),
        "<h3>Can the draws be trusted?</h3>",
        _summary(summary),
        f"<p class='meaning'>{OF_DRAWS}</p>",
    ]


def _figures(result, checks, counts):
    """Title, caption and figure, in the order of the questions that a reader asks."""
    yield (
        "Does it describe the data?",
        "Statistics of each gene in the data against draws from the fitted model. Points on the "
        "line agree; orange ones lie outside all draws.",
        pl.plot_ppc(result, checks=checks),
    )
    yield (
        "Mean and variance",
        "Counts of each gene in the data and by the model.",
        pl.plot_mean_variance(result, counts=counts),
    )
    if result.has_programs:
        yield from _programs(result, counts)
    yield (
        "Capture",
        "Capture loss of each cell; the line and the band are what its library size leads one to "
        "expect.",
        pl.plot_capture(result),
    )
    yield "Convergence", "How the fit settled.", pl.plot_loss(result)
    if result.earlier is not None:
        yield (
            "Convergence of the independent genes",
            "The first stage, whose capture losses and starting values the fit took over.",
            pl.plot_loss(result.earlier),
        )


def _programs(result, counts):
    yield (
        "How many programs?",
        "Columns of the loadings, largest first; shrinkage removes those that the data do not ask "
        "for.",
        pl.plot_w_shrinkage_spectrum(result),
    )
    if result.w_prior_diagnostics["effective_rank"]:
        yield (
            "Gene programs",
            "Genes with the largest loadings. The sign of a whole program is arbitrary.",
            pl.plot_gene_programs(result),
        )
    yield (
        "Correlations",
        "Genes that the programs vary most, in the order of a clustering.",
        pl.plot_correlation(result, n_genes=min(40, result.fitted.n_genes)),
    )
    yield (
        "Shares of genes in a cell",
        "Cells carry counting noise, the model does not; pseudobulks of about 25 similar cells are "
        "in between.",
        pl.plot_compositional_corner_ppc(result, counts=counts),
    )


def _sentences(lines) -> str:
    items, open_label = [], None
    for label, sentence in lines:
        if label or open_label is None:
            items.append([label, sentence])
            open_label = label
        else:
            items[-1].append(sentence)
    body = "".join(
        f"<dt>{html.escape(label)}</dt><dd>{'<br>'.join(map(html.escape, said))}</dd>"
        for label, *said in items
    )
    return f"<dl>{body}</dl>"


def _summary(table: pd.DataFrame) -> str:
    shown = table.reset_index()
    shown["value"] = [_shown(value) for value in shown["value"]]
    plain, marked = "<td>warning</td>", '<td class="warning">warning</td>'
    return _table(shown, index=False, kind="table notes").replace(plain, marked)


def _shown(value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}"


def _table(table: pd.DataFrame, index: bool, kind: str = "table") -> str:
    return f'<div class="{kind}">{table.to_html(index=index, border=0)}</div>'


def _picture(figure, title, caption) -> str:
    data = base64.b64encode(to_png(figure)).decode()
    picture = f'<img alt="{html.escape(title)}" src="data:image/png;base64,{data}">'
    return f"<figure>{picture}<figcaption>{html.escape(caption)}</figcaption></figure>"
