//! Targets over weft-fib.
