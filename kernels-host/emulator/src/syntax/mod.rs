//! PTX text to statements: tokens, then a module of declarations and raw instructions.

pub(crate) mod lexer;
pub(crate) mod parser;
pub(crate) mod raw;
