//! Builds a response as the model's answer grows, and tells every step as an event. Who does not stream ignores the events:
//! both see the same response.
use super::object::{Event, Failure, Incomplete, Item, Logprob, Part, Response, Status, Usage, What};

/// A response that grows.
pub struct Writer {
    response: Response,
    events: u64,
    told: Vec<Event>,
    /// Whether the last item of the output still grows.
    open: bool,
}

/// What an answer consists of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Message,
    Reasoning,
}

impl Writer {
    /// Begins a response that has no output yet.
    pub fn new(response: Response) -> Self {
        let mut writer = Writer { response, events: 0, told: Vec::new(), open: false };
        let response = Box::new(writer.response.clone());
        writer.tell(What::Created { response: response.clone() });
        writer.tell(What::InProgress { response });
        writer
    }

    /// Events since the last time.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.told)
    }

    /// The response as it is.
    pub fn into_response(self) -> Response {
        self.response
    }

    /// The message's text grows.
    pub fn text(&mut self, delta: &str, logprobs: Vec<Logprob>) {
        if delta.is_empty() && logprobs.is_empty() {
            return;
        }
        self.open(Kind::Message);
        let (item_id, output_index) = self.place();
        if let Some(Item::Message { content, .. }) = self.response.output.last_mut()
            && let Some(Part::OutputText { text, logprobs: all, .. }) = content.last_mut()
        {
            text.push_str(delta);
            all.extend(logprobs.iter().cloned());
        }
        self.tell(What::TextDelta { item_id, output_index, content_index: 0, delta: delta.to_owned(), logprobs });
    }

    /// The reasoning grows.
    pub fn reasoning(&mut self, delta: &str) {
        if delta.is_empty() {
            return;
        }
        self.open(Kind::Reasoning);
        let (item_id, output_index) = self.place();
        if let Some(Item::Reasoning { content, .. }) = self.response.output.last_mut()
            && let Some(part) = content.last_mut()
        {
            part.text_mut().push_str(delta);
        }
        self.tell(What::ReasoningDelta { item_id, output_index, content_index: 0, delta: delta.to_owned() });
    }

    /// A function call begins.
    pub fn call(&mut self, call_id: &str, name: &str) {
        self.close(Status::Completed);
        let id = format!("fc_{}", self.unique());
        let (call_id, name, arguments) = (call_id.to_owned(), name.to_owned(), String::new());
        self.add(Item::FunctionCall { id, call_id, name, arguments, status: Status::InProgress });
    }

    /// The arguments of the call that began last grow.
    pub fn arguments(&mut self, delta: &str) {
        let (item_id, output_index) = self.place();
        if let Some(Item::FunctionCall { arguments, .. }) = self.response.output.last_mut()
            && !delta.is_empty()
        {
            arguments.push_str(delta);
            self.tell(What::ArgumentsDelta { item_id, output_index, delta: delta.to_owned() });
        }
    }

    /// The answer has ended; `cut` by the limit on tokens.
    pub fn finish(&mut self, cut: bool, usage: Usage) {
        let status = if cut { Status::Incomplete } else { Status::Completed };
        if self.response.output.is_empty() {
            // An answer without a token is a message, too.
            self.open(Kind::Message);
        }
        self.close(status);
        self.response.status = status;
        self.response.usage = Some(usage);
        self.response.incomplete_details = cut.then_some(Incomplete { reason: "max_output_tokens" });
        let response = Box::new(self.response.clone());
        self.tell(if cut { What::Incomplete { response } } else { What::Completed { response } });
    }

    /// The server cannot go on.
    pub fn fail(&mut self, message: String) {
        self.close(Status::Incomplete);
        self.response.status = Status::Failed;
        self.response.error = Some(Failure { code: "server_error", message });
        let response = Box::new(self.response.clone());
        self.tell(What::Failed { response });
    }

    fn tell(&mut self, what: What) {
        self.told.push(Event { what, sequence_number: self.events });
        self.events += 1;
    }

    /// Ids of items: the response's own and their place.
    fn unique(&self) -> String {
        let id = self.response.id.strip_prefix("resp_").unwrap_or(&self.response.id);
        format!("{id}{:x}", self.response.output.len())
    }

    /// Name and place of the last item.
    fn place(&self) -> (String, usize) {
        let id = match self.response.output.last() {
            Some(Item::Message { id, .. } | Item::Reasoning { id, .. } | Item::FunctionCall { id, .. }) => id.clone(),
            None => String::new(),
        };
        (id, self.response.output.len().saturating_sub(1))
    }

    fn add(&mut self, item: Item) {
        self.response.output.push(item.clone());
        self.open = true;
        let (_, output_index) = self.place();
        self.tell(What::ItemAdded { output_index, item });
    }

    /// Makes sure that the last item is of a kind and grows.
    fn open(&mut self, kind: Kind) {
        let last = match self.response.output.last() {
            Some(Item::Message { .. }) => Some(Kind::Message),
            Some(Item::Reasoning { .. }) => Some(Kind::Reasoning),
            _ => None,
        };
        if self.open && last == Some(kind) {
            return;
        }
        self.close(Status::Completed);
        let (unique, status, content) = (self.unique(), Status::InProgress, Vec::new());
        let (item, part) = match kind {
            Kind::Message => {
                (Item::Message { id: format!("msg_{unique}"), role: "assistant", content, status }, Part::output())
            }
            Kind::Reasoning => {
                (Item::Reasoning { id: format!("rs_{unique}"), summary: [], content, status }, Part::reasoning())
            }
        };
        self.add(item);
        if let Some(Item::Message { content, .. } | Item::Reasoning { content, .. }) = self.response.output.last_mut() {
            content.push(part.clone());
        }
        let (item_id, output_index) = self.place();
        self.tell(What::PartAdded { item_id, output_index, content_index: 0, part });
    }

    /// Ends the last item if it grows.
    fn close(&mut self, end: Status) {
        if !std::mem::take(&mut self.open) {
            return;
        }
        let (item_id, output_index) = self.place();
        let Some(item) = self.response.output.last_mut() else { return };
        let (Item::Message { status, .. } | Item::Reasoning { status, .. } | Item::FunctionCall { status, .. }) = item;
        *status = end;
        let item = item.clone();
        let content_index = 0;
        match &item {
            Item::Message { content, .. } | Item::Reasoning { content, .. } => {
                for part in content.iter().cloned() {
                    let (item_id, text) = (item_id.clone(), part.text().to_owned());
                    self.tell(match &part {
                        Part::OutputText { logprobs, .. } => {
                            let (item_id, logprobs) = (item_id.clone(), logprobs.clone());
                            What::TextDone { item_id, output_index, content_index, text, logprobs }
                        }
                        Part::ReasoningText { .. } => {
                            What::ReasoningDone { item_id: item_id.clone(), output_index, content_index, text }
                        }
                    });
                    self.tell(What::PartDone { item_id, output_index, content_index, part });
                }
            }
            Item::FunctionCall { name, arguments, .. } => {
                let (name, arguments) = (name.clone(), arguments.clone());
                self.tell(What::ArgumentsDone { item_id, output_index, name, arguments });
            }
        }
        self.tell(What::ItemDone { output_index, item });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::collections::BTreeMap;

    fn writer() -> Writer {
        Writer::new(Response {
            id: "resp_7".into(),
            object: "response",
            created_at: 1,
            status: Status::InProgress,
            background: false,
            error: None,
            incomplete_details: None,
            instructions: None,
            max_output_tokens: None,
            model: "m".into(),
            output: Vec::new(),
            parallel_tool_calls: true,
            previous_response_id: None,
            reasoning: json!({}),
            store: false,
            temperature: 1.0,
            text: json!({"format": {"type": "text"}}),
            tool_choice: json!("auto"),
            tools: Vec::new(),
            top_p: 1.0,
            truncation: "disabled",
            usage: None,
            user: None,
            metadata: BTreeMap::new(),
        })
    }

    /// The output as a client builds it from the events alone.
    fn rebuilt(events: &[Event]) -> Value {
        let mut output: Vec<Value> = Vec::new();
        for (number, event) in events.iter().enumerate() {
            let event = serde_json::to_value(event).unwrap();
            assert_eq!(event["sequence_number"], json!(number));
            let at = event["output_index"].as_u64().unwrap_or(0) as usize;
            let grow = |field: &mut Value| {
                *field = json!(format!("{}{}", field.as_str().unwrap(), event["delta"].as_str().unwrap()));
            };
            match event["type"].as_str().unwrap() {
                "response.output_item.added" => {
                    assert_eq!(at, output.len());
                    output.push(event["item"].clone());
                }
                "response.content_part.added" => {
                    output[at]["content"].as_array_mut().unwrap().push(event["part"].clone());
                }
                "response.output_text.delta" | "response.reasoning_text.delta" => {
                    assert_eq!(event["item_id"], output[at]["id"]);
                    grow(&mut output[at]["content"][0]["text"]);
                }
                "response.function_call_arguments.delta" => grow(&mut output[at]["arguments"]),
                "response.output_text.done" | "response.reasoning_text.done" => {
                    assert_eq!(event["text"], output[at]["content"][0]["text"]);
                }
                "response.function_call_arguments.done" => assert_eq!(event["arguments"], output[at]["arguments"]),
                "response.content_part.done" => assert_eq!(event["part"], output[at]["content"][0]),
                "response.output_item.done" => {
                    output[at]["status"] = event["item"]["status"].clone();
                    assert_eq!(event["item"], output[at]);
                }
                _ => {}
            }
        }
        Value::Array(output)
    }

    #[test]
    fn the_events_add_up_to_the_response() {
        let mut writer = writer();
        writer.reasoning("hm");
        writer.reasoning("m");
        writer.text("", Vec::new());
        writer.text("The answer", Vec::new());
        writer.text(" is", Vec::new());
        writer.call("call_1", "add");
        writer.arguments("{\"a\":");
        writer.arguments("1}");
        writer.call("call_2", "add");
        writer.arguments("{}");
        writer.text("so.", Vec::new());
        writer.finish(false, Usage::default());
        let events = writer.take_events();
        let names: Vec<_> = events.iter().map(|event| event.what.name()).collect();
        assert_eq!(names[..3], ["response.created", "response.in_progress", "response.output_item.added"]);
        assert_eq!(names.last(), Some(&"response.completed"));
        for event in &events {
            assert_eq!(serde_json::to_value(event).unwrap()["type"], event.what.name());
        }
        let response = serde_json::to_value(writer.into_response()).unwrap();
        assert_eq!(response["output"], rebuilt(&events));
        let kinds: Vec<_> = response["output"].as_array().unwrap().iter().map(|item| item["type"].clone()).collect();
        assert_eq!(kinds, ["reasoning", "message", "function_call", "function_call", "message"]);
        assert_eq!(response["output"][1]["content"][0]["text"], "The answer is");
        assert_eq!(response["output"][2]["arguments"], "{\"a\":1}");
        assert_eq!(response["status"], "completed");
        let ids: std::collections::HashSet<_> =
            response["output"].as_array().unwrap().iter().map(|item| item["id"].to_string()).collect();
        assert_eq!(ids.len(), 5, "ids differ");
    }

    #[test]
    fn a_cut_answer_and_a_failed_one_say_so() {
        let mut cut = writer();
        cut.text("The", Vec::new());
        cut.finish(true, Usage::default());
        let events = cut.take_events();
        assert_eq!(events.last().unwrap().what.name(), "response.incomplete");
        let response = serde_json::to_value(cut.into_response()).unwrap();
        assert_eq!(response["incomplete_details"]["reason"], "max_output_tokens");
        assert_eq!(response["output"], rebuilt(&events));
        let mut failed = writer();
        failed.text("The", Vec::new());
        failed.fail("no more".into());
        let events = failed.take_events();
        assert_eq!(events.last().unwrap().what.name(), "response.failed");
        let response = serde_json::to_value(failed.into_response()).unwrap();
        assert_eq!(
            (response["status"].as_str(), response["error"]["message"].as_str()),
            (Some("failed"), Some("no more"))
        );
        let mut empty = writer();
        empty.finish(false, Usage::default());
        assert_eq!(serde_json::to_value(empty.into_response()).unwrap()["output"][0]["content"][0]["text"], "");
    }
}
