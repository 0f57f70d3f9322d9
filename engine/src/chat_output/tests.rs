use super::super::*;
use proptest::prelude::*;

fn tools(tools: ToolFormat) -> ChatFormat {
    ChatFormat { tools: Some(tools), ..ChatFormat::default() }
}

fn thinks(open: bool) -> ChatFormat {
    ChatFormat { reasoning: Some(ReasoningFormat::Think), reasoning_is_open: open, ..tools(ToolFormat::Hermes) }
}

fn calls(format: ChatFormat, text: &str) -> (String, Vec<(String, String)>) {
    let message = ChatMessage::parse(format, text);
    (message.content, message.tool_calls.into_iter().map(|call| (call.name, call.arguments)).collect())
}

fn call(name: &str, arguments: &str) -> (String, String) {
    (name.to_owned(), arguments.to_owned())
}

#[test]
fn calls_of_every_format() {
    let two = vec![call("a", r#"{"x": [1, "}"]}"#), call("b", "{}")];
    for (format, text) in [
        (
            ToolFormat::Hermes,
            "<tool_call>\n{\"name\": \"a\", \"arguments\": {\"x\": [1, \"}\"]}}\n</tool_call>\n<tool_call>\n{\"name\": \"b\"}\n</tool_call>",
        ),
        (ToolFormat::Llama3Json, r#"{"name": "a", "parameters": {"x": [1, "}"]}}; {"name": "b", "parameters": {}}"#),
        (
            ToolFormat::Llama3Json,
            r#"<|python_tag|>{"type": "function", "name": "a", "parameters": {"x": [1, "}"]}}; {"name": "b"}"#,
        ),
        (
            ToolFormat::Mistral,
            r#"[TOOL_CALLS] [{"name": "a", "arguments": {"x": [1, "}"]}}, {"arguments": {}, "name": "b"}]"#,
        ),
        (ToolFormat::Mistral, r#"[TOOL_CALLS]a{"x": [1, "}"]}[TOOL_CALLS]b[ARGS]{}"#),
        (ToolFormat::Json, r#"[{"name": "a", "parameters": {"x": [1, "}"]}}, {"name": "b", "arguments": null}]"#),
    ] {
        assert_eq!(calls(tools(format), text), (String::new(), two.clone()), "{text}");
    }
}

#[test]
fn text_around_calls_is_content_without_the_space_between() {
    let text = "I look.\n\n<tool_call>{\"name\": \"a\", \"arguments\": \"{\\\"x\\\": 1}\"}</tool_call>\n Done.";
    assert_eq!(calls(tools(ToolFormat::Hermes), text), ("I look.Done.".into(), vec![call("a", r#"{"x": 1}"#)]));
}

#[test]
fn what_is_no_call_is_content_to_the_letter() {
    for (format, text) in [
        (ToolFormat::Hermes, " a < b <tool_calx> <tool_call"),
        (ToolFormat::Hermes, "<tool_call>[1]</tool_call>"),
        (ToolFormat::Hermes, "<tool_call>\n{\"name\": 1, \"x\": 2} \n"),
        (ToolFormat::Llama3Json, "{\"answer\": 42}"),
        (ToolFormat::Llama3Json, "  {\"name\": \"an"),
        (ToolFormat::Mistral, "[TOOL_CALLS] [1, 2] "),
        (ToolFormat::Json, "[1, {\"name\": 2}]"),
        (ToolFormat::Json, "{\"name\": \"x"),
    ] {
        assert_eq!(calls(tools(format), text), (text.to_owned(), Vec::new()));
    }
}

#[test]
fn a_call_cut_off_keeps_what_it_has() {
    let text = r#"<tool_call>{"name": "a", "arguments": {"x": 1"#;
    assert_eq!(calls(tools(ToolFormat::Hermes), text), (String::new(), vec![call("a", r#"{"x": 1"#)]));
    for (format, text) in [
        (ToolFormat::Hermes, r#"<tool_call>{"name": "a"}</tool_call><tool_call>{"na"#),
        (ToolFormat::Llama3Json, r#"{"name": "a"}; {"name": "b"#),
        (ToolFormat::Mistral, r#"[TOOL_CALLS]a{}[TOOL_CALLS]b"#),
        (ToolFormat::Json, r#"[{"name": "a"}, {"na"#),
    ] {
        assert_eq!(calls(tools(format), text), (String::new(), vec![call("a", "{}")]), "cut before a second name");
    }
}

#[test]
fn reasoning_is_split_off() {
    for (open, text) in
        [(false, "\n<think>\n1 < 2 </thin\n</think>\n\nHi <think>"), (true, "1 < 2 </thin\n</think>Hi <think>")]
    {
        let message = ChatMessage::parse(thinks(open), text);
        assert_eq!((message.reasoning.trim_start(), &*message.content), ("1 < 2 </thin", "Hi <think>"), "{text}");
    }
    let message = ChatMessage::parse(thinks(false), "<think>a</think>\n<tool_call>{\"name\": \"f\"}</tool_call>");
    assert_eq!((&*message.reasoning, &*message.content, message.tool_calls.len()), ("a", "", 1));
    assert_eq!(ChatMessage::parse(thinks(true), "a b").reasoning, "a b");
    let bare = ChatFormat { tools: Some(ToolFormat::Llama3Json), ..thinks(true) };
    let message = ChatMessage::parse(bare, "a</think>\n{\"name\": \"f\"}");
    assert_eq!((&*message.reasoning, &*message.content, message.tool_calls.len()), ("a", "", 1));
}

/// Pieces of which texts with and without calls are made.
fn texts() -> impl Strategy<Value = String> {
    let pieces = [
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "<|python_tag|>",
        "{\"name\": \"f\", ",
        "\"arguments\": {\"a\": \"}\\\"é\"}}",
        "\"parameters\": {}",
        "}",
        "{",
        "[",
        "]",
        ",",
        ";",
        " ",
        "\n",
        "word",
        "é",
        "<",
        "\"",
        "{\"name\": \"g\", \"arguments\": {\"x\": [1, 2]}}",
        "[ARGS]",
        "[THINK]",
        "[/THINK]",
        "\\",
    ];
    proptest::collection::vec(proptest::sample::select(pieces.to_vec()), 0..14).prop_map(|pieces| pieces.concat())
}

fn formats() -> impl Strategy<Value = ChatFormat> {
    let tools = proptest::option::of(proptest::sample::select(ToolFormat::ALL.to_vec()));
    let reasoning =
        proptest::option::of(proptest::sample::select(vec![ReasoningFormat::Think, ReasoningFormat::Mistral]));
    (tools, reasoning, any::<bool>()).prop_map(|(tools, reasoning, reasoning_is_open)| ChatFormat {
        tools,
        reasoning,
        reasoning_is_open,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn it_does_not_matter_how_the_text_is_cut(format in formats(), text in texts(), cuts in proptest::collection::vec(any::<bool>(), 64)) {
        let whole = ChatMessage::parse(format, &text);
        let (mut parser, mut message, mut piece) = (ChatParser::new(format), ChatMessage::default(), String::new());
        for (c, cut) in text.chars().zip(cuts.iter().cycle()) {
            piece.push(c);
            if *cut {
                message.extend(parser.push(&std::mem::take(&mut piece)));
            }
        }
        message.extend(parser.push(&piece));
        message.extend(parser.finish());
        prop_assert_eq!(message, whole);
    }

    #[test]
    fn calls_written_in_a_format_are_read_from_it(
        format in proptest::sample::select(ToolFormat::ALL.to_vec()),
        names in proptest::collection::vec("[a-z_]{1,8}", 1..4),
        values in proptest::collection::vec("[ -~é\\n]{0,12}", 4),
    ) {
        let wanted: Vec<_> = names.iter().zip(&values).map(|(name, value)| call(name, &serde_json::json!({"v": value, "n": [1, {"x": null}]}).to_string())).collect();
        let json = |key: &str| wanted.iter().map(|(name, arguments)| format!("{{\"name\": \"{name}\", \"{key}\": {arguments}}}")).collect::<Vec<_>>();
        let text = match format {
            ToolFormat::Hermes => json("arguments").iter().map(|call| format!("<tool_call>\n{call}\n</tool_call>\n")).collect(),
            ToolFormat::Llama3Json => json("parameters").join("; "),
            ToolFormat::Mistral => format!("[TOOL_CALLS] [{}]", json("arguments").join(", ")),
            ToolFormat::Json => format!("[{}]", json("parameters").join(", ")),
        };
        prop_assert_eq!(calls(tools(format), &text), (String::new(), wanted));
    }
}
