//! Wootz.
fn main() {}
