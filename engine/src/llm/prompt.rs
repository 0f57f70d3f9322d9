//! What is continued.

/// A prompt: text, with the special tokens that the tokenizer adds, or tokens as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Text.
    Text(String),
    /// Tokens.
    Tokens(Vec<u32>),
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Prompt::Text(text.to_owned())
    }
}

impl From<&String> for Prompt {
    fn from(text: &String) -> Self {
        Prompt::Text(text.clone())
    }
}

impl From<String> for Prompt {
    fn from(text: String) -> Self {
        Prompt::Text(text)
    }
}

impl From<Vec<u32>> for Prompt {
    fn from(tokens: Vec<u32>) -> Self {
        Prompt::Tokens(tokens)
    }
}

/// One prompt, or many: texts and [`Prompt`]s, arrays, slices and vectors of what is a prompt.
pub trait Prompts {
    /// All of them.
    fn into_prompts(self) -> Vec<Prompt>;
}

impl Prompts for Prompt {
    fn into_prompts(self) -> Vec<Prompt> {
        vec![self]
    }
}

impl Prompts for &str {
    fn into_prompts(self) -> Vec<Prompt> {
        vec![self.into()]
    }
}

impl Prompts for String {
    fn into_prompts(self) -> Vec<Prompt> {
        vec![self.into()]
    }
}

impl<T: Into<Prompt>> Prompts for Vec<T> {
    fn into_prompts(self) -> Vec<Prompt> {
        self.into_iter().map(Into::into).collect()
    }
}

impl<T: Into<Prompt>, const N: usize> Prompts for [T; N] {
    fn into_prompts(self) -> Vec<Prompt> {
        self.into_iter().map(Into::into).collect()
    }
}

impl<T: Clone + Into<Prompt>> Prompts for &[T] {
    fn into_prompts(self) -> Vec<Prompt> {
        self.iter().cloned().map(Into::into).collect()
    }
}

impl<T: Clone + Into<Prompt>> Prompts for &Vec<T> {
    fn into_prompts(self) -> Vec<Prompt> {
        self.as_slice().into_prompts()
    }
}
