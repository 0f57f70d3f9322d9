//! Integration tests over the whole workspace, as lists of trials that one executable runs.

pub mod goldens;
