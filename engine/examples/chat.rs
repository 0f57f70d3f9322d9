//! The library in two lines: `cargo run --example chat -p engine [QUESTION]`.
use engine::{Llm, SamplingParams, message};

fn main() -> engine::Result<()> {
    let question = std::env::args().nth(1).unwrap_or_else(|| "What is 12 plus 7?".into());
    let mut llm = Llm::load("tiny-chat")?;
    println!("{}", llm.chat(&[message("user", &question)], SamplingParams::default())?.text());
    Ok(())
}
