//! Reports as a whole: what stands on the page, that a page can be made of anything, and what comparisons conclude.

mod compare;
mod page;
mod synthetic;
