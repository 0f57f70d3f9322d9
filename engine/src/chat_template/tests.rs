use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn template(source: &str) -> Result<ChatTemplate> {
    let config = json!({"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>", "pad_token": null});
    ChatTemplate::from_memory("model", config.to_string().as_bytes(), Some(source))
}

fn render(source: &str) -> Result<String> {
    template(source)?.render(&ChatInput { messages: vec![message("user", "hi")], ..ChatInput::default() })
}

fn message_of<T>(r: Result<T>) -> String {
    match r {
        Ok(_) => panic!("must be refused"),
        Err(e) => e.to_string(),
    }
}

/// Every case of `tests/chat_templates/make.py`, byte for byte.
#[test]
fn equals_transformers() {
    let goldens: Json = serde_json::from_str(include_str!("../../tests/chat_templates/goldens.json")).unwrap();
    let sources = [
        ("chatml", include_str!("../../tests/chat_templates/chatml.jinja")),
        ("llama31", include_str!("../../tests/chat_templates/llama31.jinja")),
        ("qwen25", include_str!("../../tests/chat_templates/qwen25.jinja")),
        ("thinking", include_str!("../../tests/chat_templates/thinking.jinja")),
        ("mistral", include_str!("../../tests/chat_templates/mistral.jinja")),
        ("gemma2", include_str!("../../tests/chat_templates/gemma2.jinja")),
        ("pythonisms", include_str!("../../tests/chat_templates/pythonisms.jinja")),
    ];
    let list = |v: &Json| v.as_array().cloned();
    let now = UNIX_EPOCH + Duration::from_secs(goldens["now"].as_u64().unwrap());
    let cases = list(&goldens["cases"]).unwrap();
    assert!(cases.len() > 100);
    let mut failures = Vec::new();
    for case in cases {
        let name = case["template"].as_str().unwrap();
        let chat = case["chat"].as_str().unwrap();
        let source = sources.iter().find(|(n, _)| *n == name).unwrap().1;
        let mut options = case["options"].as_object().unwrap().clone();
        let prompt = options.remove("add_generation_prompt");
        let result = template(source).unwrap().render(&ChatInput {
            messages: list(&goldens["chats"][chat]).unwrap(),
            tools: options.remove("tools").as_ref().and_then(list),
            add_generation_prompt: prompt == Some(json!(true)),
            variables: options,
            now: Some(now),
            ..ChatInput::default()
        });
        let as_wanted = match (case["text"].as_str(), case["refused"].as_str()) {
            (Some(want), _) => matches!(&result, Ok(got) if got == want),
            (_, Some(want)) => {
                matches!(&result, Err(Error::TemplateRefused { message, .. }) if message == want)
            }
            _ => result.is_err(),
        };
        if !as_wanted {
            let (got, want) = (format!("{result:?}"), format!("Ok({})", case["text"]));
            let same = got.bytes().zip(want.bytes()).take_while(|(a, b)| a == b).count();
            let near = |text: &str| text.chars().skip(same.saturating_sub(60)).take(160).collect::<String>();
            let (got, want) = (near(&got), near(&want));
            failures.push(format!("{name} on {chat:?} with {}:\n{got}\ninstead of\n{want}", case["options"]));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn broken_templates_name_file_and_line() {
    let text = message_of(template("a\n{% for x in %}\n"));
    assert!(text.starts_with("chat_template.jinja:2: chat template: syntax error:"), "{text}");
    let text = message_of(render("a\nb\n{{ messages[0].content.nothing() }}"));
    assert!(text.starts_with("chat_template.jinja:3: chat template:"), "{text}");
    let text = message_of(render("{{ a.b.c }}"));
    assert!(text.starts_with("chat_template.jinja:1: chat template: undefined value"), "{text}");
    let text = message_of(render("{{ raise_exception('no\nsystem') }}"));
    assert_eq!(text, "model: the chat template refuses this conversation: no system");
    let config = json!({"chat_template": "{{ x"}).to_string();
    let text = message_of(ChatTemplate::from_memory("model", config.as_bytes(), None));
    assert!(text.starts_with("tokenizer_config.json (chat_template):1: chat template: "), "{text}");
    let text = message_of(ChatTemplate::from_memory("model", b"{", None));
    assert!(text.starts_with("tokenizer_config.json is not valid JSON"), "{text}");
    let text = message_of(ChatTemplate::from_memory("model", b"{}", None));
    assert!(text.starts_with("model has no chat template"), "{text}");
    let config = json!({"chat_template": [{"name": "a"}]}).to_string();
    let text = message_of(ChatTemplate::from_memory("model", config.as_bytes(), None));
    assert!(text.contains("every template needs a name and a template"), "{text}");
}

#[test]
fn endless_and_huge_templates_end() {
    let text =
        message_of(render("{% for a in range(90000) %}{% for b in range(90000) %}{{ a * b }}{% endfor %}{% endfor %}"));
    assert!(text.contains("it does not end"), "{text}");
    let text = message_of(render("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"));
    assert!(text.contains("recursion") || text.contains("does not end"), "{text}");
    let text = message_of(render("{% set x = 'abcdefgh' * 100000 %}{% for a in range(1000) %}{{ x }}{% endfor %}"));
    assert!(text.contains("64 MiB"), "{text}");
}

#[test]
fn a_panic_in_the_engine_is_an_error() {
    let text = message_of(render("{{ ''[::-1] }}"));
    assert!(text.contains("sliced backwards"), "{text}");
}

#[test]
fn named_templates() {
    let config = json!({"chat_template": [
        {"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}, {"name": "rag", "template": "rag"}]});
    let t = ChatTemplate::from_memory("model", config.to_string().as_bytes(), None).unwrap();
    let mut input = ChatInput { messages: vec![message("user", "hi")], ..ChatInput::default() };
    assert_eq!(t.render(&input).unwrap(), "plain");
    input.tools = Some(vec![]);
    assert_eq!(t.render(&input).unwrap(), "tools");
    input.template = Some("rag".to_owned());
    assert_eq!(t.render(&input).unwrap(), "rag");
    input.template = Some("x".to_owned());
    let text = message_of(t.render(&input));
    assert!(text.contains("there is no template \"x\"; there are default, rag, tool_use"), "{text}");
    input.messages.clear();
    assert!(message_of(t.render(&input)).contains("give at least one message"));
}

#[test]
fn files_replace_tokenizer_config() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    assert!(message_of(ChatTemplate::from_dir(dir.path())).contains("has no chat template"));
    write("special_tokens_map.json", r#"{"bos_token": "<map>", "eos_token": {"content": "<end>"}}"#);
    write("tokenizer_config.json", r#"{"bos_token": "<s>", "chat_template": "old"}"#);
    let input = ChatInput { messages: vec![message("user", "hi")], ..ChatInput::default() };
    let render = || ChatTemplate::from_dir(dir.path()).unwrap().render(&input).unwrap();
    assert_eq!(render(), "old");
    write("chat_template.jinja", "{{ bos_token }}new{{ eos_token }}\n");
    assert_eq!(render(), "<s>new<end>");
    std::fs::create_dir(dir.path().join("additional_chat_templates")).unwrap();
    write("additional_chat_templates/rag.jinja", "rag");
    let rag = ChatInput { template: Some("rag".to_owned()), ..input.clone() };
    assert_eq!(ChatTemplate::from_dir(dir.path()).unwrap().render(&rag).unwrap(), "rag");
}

#[test]
fn generation_tags_are_scopes() {
    assert_eq!(
        render("{% generation %}a{% set x = 1 %}{{ x }}{% endgeneration %}{{ x }}{%- generation -%} b {%- endgeneration -%}").unwrap(),
        "a1b"
    );
}

/// Fragments that combine into templates, mostly broken ones.
fn fragments() -> impl Strategy<Value = String> {
    let fragment = prop::sample::select(vec![
        "{% for m in messages %}",
        "{% endfor %}",
        "{% if x %}",
        "{% else %}",
        "{% endif %}",
        "{{ ",
        " }}",
        "{%",
        "%}",
        "{%- ",
        " -%}",
        "m.content",
        "['role']",
        "[0]",
        "[-1:]",
        "[::-1]",
        " | tojson(indent=4)",
        " | trim",
        ".strip()",
        ".split('a')",
        ".items()",
        "messages",
        "tools",
        " ~ ",
        " + ",
        " * 99999999",
        " // 0",
        " % 3",
        "(",
        ")",
        "'",
        "\"",
        "namespace(a=1)",
        "{% set n.a = ",
        "{% set y = ",
        "{% macro f(a) %}",
        "{% endmacro %}",
        "f(1)",
        "f",
        "range(5)",
        "range(9999999999)",
        "{% break %}",
        "{% generation %}",
        "{% endgeneration %}",
        "loop.index",
        "raise_exception('x')",
        "strftime_now('%Y%')",
        "{#",
        "#}",
        "\n",
        "é",
        "{{",
        "**",
        "9999999999999999999999",
        "-1",
        "not ",
        "is defined",
        ".format(1)",
        "'%s%d' | format",
        "{'a': ",
        "}",
        "[",
        "]",
        " | ",
        "sort",
        "join",
        "first",
        "1.5",
    ]);
    prop::collection::vec(fragment, 0..14).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn arbitrary_templates_never_panic(source in fragments()) {
        let result = render(&source);
        if let Err(e) = result {
            prop_assert!(!e.to_string().contains('\n'), "{e}");
        }
    }

    #[test]
    fn arbitrary_text_never_panics(source in "\\PC{0,60}") {
        let _ = render(&format!("{{% {source} %}}"));
        let _ = render(&format!("{{{{ {source} }}}}"));
        let _ = render(&source);
    }

    /// Real templates with a piece removed.
    #[test]
    fn mutilated_templates_never_panic(cut in any::<prop::sample::Index>(), len in 1usize..40, which in 0usize..3) {
        let source = [
            include_str!("../../tests/chat_templates/pythonisms.jinja"),
            include_str!("../../tests/chat_templates/llama31.jinja"),
            include_str!("../../tests/chat_templates/thinking.jinja"),
        ][which];
        let chars: Vec<char> = source.chars().collect();
        let at = cut.index(chars.len());
        let end = (at + len).min(chars.len());
        let source: String = chars[..at].iter().chain(&chars[end..]).collect();
        let _ = render(&source);
    }
}
