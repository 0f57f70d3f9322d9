//! `wootz serve` as its clients see it: real processes, real sockets.
mod chaos;
mod client;
mod connections;
mod edges;
mod fuzz;
mod http;
mod hub;
mod official;
mod ops;
mod schema;

use anyhow::Result;
use libtest_mimic::Trial;

/// The tests.
pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    let mut add = |name: &str, run: fn() -> Result<()>| {
        trials.push(Trial::test(format!("serve::{name}"), move || run().map_err(|e| format!("{e:#}").into())));
    };
    add("openai", http::openai);
    add("hang_up", http::hang_up);
    add("crowd", chaos::crowd);
    add("huge", chaos::huge);
    add("slow_reader", chaos::slow_reader);
    add("drain", chaos::drain);
    add("drain_in_vain", chaos::drain_in_vain);
    add("killed", chaos::killed);
    add("fault", chaos::fault);
    add("fault_in_streams", connections::fault_in_streams);
    add("comments", connections::comments);
    add("silent_clients", connections::silent_clients);
    add("deaf_clients", connections::deaf_clients);
    add("max_connections", connections::max_connections);
    add("embeddings", edges::embeddings);
    add("responses", edges::responses);
    add("responses_structured", edges::responses_structured);
    add("openapi", fuzz::openapi);
    add("openapi_admin", fuzz::admin);
    add("failed_starts", ops::failed_starts);
    add("hub", hub::hub);
    add("keys_and_log", ops::keys_and_log);
    add("origins", ops::origins);
    add("full_queue", ops::full_queue);
    add("second_signal", ops::second_signal);
    add("models", ops::models);
    add("loading", ops::loading);
    trials.extend(official::trials());
    trials
}
