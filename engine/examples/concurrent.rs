//! Many questions at once, from many threads, through one engine: `cargo run --example concurrent -p engine [DIR]`.
use engine::{AsyncLlm, SamplingParams, message};
use std::time::Duration;

fn main() -> engine::Result<()> {
    let model = std::env::args().nth(1).unwrap_or_else(|| "tiny-chat".into());
    let llm = AsyncLlm::load(model)?;
    let questions = ["What is 12 plus 7?", "Spell the word garden", "Sort these numbers: 42, 7, 19", "Who are you?"];
    std::thread::scope(|scope| {
        for question in questions {
            let llm = llm.clone();
            scope.spawn(move || {
                let params = SamplingParams { max_tokens: Some(128), ..SamplingParams::default() };
                match llm.chat(&[message("user", question)], params).and_then(|stream| stream.wait()) {
                    Ok(answer) => println!("{question}\n  {} ({:.1?})", answer.text(), answer.time_to_first_token),
                    Err(error) => eprintln!("{question}\n  error: {error}"),
                }
            });
        }
    });
    llm.handle().shutdown(Duration::from_secs(10))
}
