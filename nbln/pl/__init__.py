"""Figures: each function returns a matplotlib figure, draws on `ax=` if given, never shows it."""

from nbln.pl.activity import plot_program_activity
from nbln.pl.checks import plot_mean_variance, plot_ppc
from nbln.pl.codes import plot_latent_mean_variance, plot_prior_samples, plot_reconstructions
from nbln.pl.corner import plot_compositional_corner_ppc
from nbln.pl.effects import plot_effects
from nbln.pl.fit import plot_capture, plot_latent, plot_loss, plot_w_shrinkage_spectrum
from nbln.pl.genes import plot_correlation, plot_gene_programs
from nbln.pl.histograms import plot_gene_ppc
from nbln.pl.maps import plot_cell_map
from nbln.pl.network import plot_network
from nbln.pl.posterior import plot_calls, plot_pair_intervals

__all__ = [
    "plot_calls",
    "plot_capture",
    "plot_cell_map",
    "plot_compositional_corner_ppc",
    "plot_correlation",
    "plot_effects",
    "plot_gene_ppc",
    "plot_gene_programs",
    "plot_latent",
    "plot_latent_mean_variance",
    "plot_loss",
    "plot_mean_variance",
    "plot_network",
    "plot_pair_intervals",
    "plot_ppc",
    "plot_prior_samples",
    "plot_program_activity",
    "plot_reconstructions",
    "plot_w_shrinkage_spectrum",
]
