"""Temperatures, confidence sets and typicality, fitted on X-rays of other people."""
