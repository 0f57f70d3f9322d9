//! Modules, entries and statements; names are resolved later, by the decoder.

use super::lexer::{Token, tokens};
use super::raw::{Loc, Place, RawEntry, RawModule, RawOperand, Scope, Statement, Variable};
use crate::ParseError;
use crate::instruction::{Class, Reg};

/// Parses the text of a module.
///
/// # Errors
/// Text that is not PTX, with its line.
pub(crate) fn parse(text: &str) -> Result<RawModule<'_>, ParseError> {
    let tokens = tokens(text)?;
    Parser { tokens: &tokens, at: 0 }.module()
}

/// A position in the tokens.
struct Parser<'t, 'a> {
    tokens: &'t [(Token<'a>, u32)],
    at: usize,
}

impl<'a> Parser<'_, 'a> {
    fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at).map(|(token, _)| *token)
    }

    fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |(_, line)| *line)
    }

    fn next(&mut self) -> Option<Token<'a>> {
        let token = self.peek()?;
        self.at += 1;
        Some(token)
    }

    fn is(&mut self, c: char) -> bool {
        let found = self.peek() == Some(Token::Punct(c));
        self.at += usize::from(found);
        found
    }

    fn expected<T>(&self, what: &str) -> Result<T, ParseError> {
        let found = match self.peek() {
            Some(Token::Word(word) | Token::Number(word)) => format!("`{word}`"),
            Some(Token::Text(text)) => format!("\"{text}\""),
            Some(Token::Punct(c)) => format!("`{c}`"),
            None => "the end of the text".into(),
        };
        Err(ParseError::Syntax { line: self.line(), what: format!("expected {what}, found {found}") })
    }

    fn expect(&mut self, c: char) -> Result<(), ParseError> {
        if self.is(c) { Ok(()) } else { self.expected(&format!("`{c}`")) }
    }

    fn word(&mut self, what: &str) -> Result<&'a str, ParseError> {
        match self.peek() {
            Some(Token::Word(word)) => {
                self.at += 1;
                Ok(word)
            }
            _ => self.expected(what),
        }
    }

    fn integer(&mut self, what: &str) -> Result<i64, ParseError> {
        let negative = self.is('-');
        let Some(Token::Number(digits)) = self.peek() else { return self.expected(what) };
        let Some(value) = integer(digits) else { return self.expected(what) };
        self.at += 1;
        Ok(if negative { value.wrapping_neg() } else { value })
    }

    fn count(&mut self, what: &str) -> Result<u32, ParseError> {
        let line = self.line();
        let value = self.integer(what)?;
        u32::try_from(value).map_err(|_| ParseError::Syntax { line, what: format!("{what} of {value}") })
    }

    fn module(mut self) -> Result<RawModule<'a>, ParseError> {
        let mut module = RawModule::default();
        while let Some(token) = self.peek() {
            match token {
                Token::Word(".version") | Token::Word(".address_size") => {
                    self.at += 2;
                }
                Token::Word(".target") => {
                    self.at += 1;
                    module.target = self.word("a target")?;
                    while self.is(',') {
                        self.word("a target option")?;
                    }
                }
                Token::Word(".file") => self.file(&mut module)?,
                Token::Word(".section") => self.skip_braces()?,
                Token::Word(".extern" | ".visible" | ".weak" | ".common") => self.at += 1,
                Token::Word(".entry") => {
                    let entry = self.entry()?;
                    module.entries.push(entry);
                }
                Token::Word(".shared" | ".global" | ".const") => {
                    let variable = self.variable()?;
                    self.expect(';')?;
                    module.variables.push(variable);
                }
                _ => return self.expected("a module directive (.entry, .shared, .global, …)"),
            }
        }
        Ok(module)
    }

    /// `.file 1 "src/lib.rs"`, perhaps with a time and a size.
    fn file(&mut self, module: &mut RawModule<'a>) -> Result<(), ParseError> {
        let line = self.line();
        self.at += 1;
        let number = self.count("a file number")?;
        if let Some(Token::Text(path)) = self.peek() {
            module.files.insert(number, path);
        }
        self.skip_rest(line);
        Ok(())
    }

    /// `.loc 1 20 5`, or `.loc 1 20 5, function_name $name, inlined_at 2 30 9`.
    fn loc(&mut self, entry: &mut RawEntry<'a>) -> Result<(), ParseError> {
        let line = self.line();
        self.at += 1;
        let at = self.place()?;
        let mut inlined_at = None;
        while self.peek().is_some() && self.line() == line {
            if self.next() == Some(Token::Word("inlined_at")) {
                inlined_at = Some(self.place()?);
            }
        }
        entry.sources.push(Loc { at, inlined_at });
        Ok(())
    }

    fn place(&mut self) -> Result<Place, ParseError> {
        Ok((self.count("a file number")?, self.count("a line")?, self.count("a column")?))
    }

    fn skip_line(&mut self) {
        self.skip_rest(self.line());
    }

    fn skip_rest(&mut self, line: u32) {
        while self.peek().is_some() && self.line() == line {
            self.at += 1;
        }
    }

    fn skip_braces(&mut self) -> Result<(), ParseError> {
        let mut depth = 0;
        while let Some(token) = self.next() {
            match token {
                Token::Punct('{') => depth += 1,
                Token::Punct('}') if depth == 1 => return Ok(()),
                Token::Punct('}') => depth -= 1,
                _ => {}
            }
        }
        self.expected("`}`")
    }

    /// `.param .u64 .ptr .align 1 name`, `.shared .align 1024 .b8 name[]`, `.global .u32 n = 3`.
    fn variable(&mut self) -> Result<Variable<'a>, ParseError> {
        let line = self.line();
        let space = self.word("a state space")?;
        let mut align = None;
        let mut element = None;
        loop {
            match self.word("a name")? {
                ".align" => {
                    let value = self.count("an alignment")? as usize;
                    // After `.ptr` the alignment is that of the memory pointed to.
                    if element.is_none() {
                        align = Some(value);
                    }
                }
                ".ptr" | ".global" | ".shared" | ".const" | ".local" => {}
                word if word.starts_with('.') => {
                    let Some(bytes) = element_bytes(word) else {
                        self.at -= 1;
                        return self.expected("a type");
                    };
                    element = Some(bytes);
                }
                name => {
                    let Some(element) = element else {
                        self.at -= 1;
                        return self.expected("a type");
                    };
                    let mut elements = 1;
                    while self.is('[') {
                        elements *= if self.is(']') { 0 } else { self.count("a length")? as usize };
                        if elements != 0 {
                            self.expect(']')?;
                        }
                    }
                    let init = if self.is('=') { self.initialiser(element)? } else { Vec::new() };
                    let align = align.unwrap_or(element);
                    let bytes = element * elements;
                    return Ok(Variable { space, name, align, bytes, init, line });
                }
            }
        }
    }

    fn initialiser(&mut self, element: usize) -> Result<Vec<u8>, ParseError> {
        let mut bytes = Vec::new();
        let list = self.is('{');
        while !(list && self.is('}')) {
            let line = self.line();
            let value = match self.operand()? {
                RawOperand::Integer(value) => value as u64,
                RawOperand::Float(bits) => u64::from(bits),
                RawOperand::Double(bits) => bits,
                _ => {
                    let what = "initialisers are numbers here; addresses are not supported".into();
                    return Err(ParseError::Syntax { line, what });
                }
            };
            bytes.extend_from_slice(&value.to_le_bytes()[..element]);
            if !list {
                break;
            }
            self.is(',');
        }
        Ok(bytes)
    }

    fn entry(&mut self) -> Result<RawEntry<'a>, ParseError> {
        self.at += 1;
        let name = self.word("the entry's name")?;
        let mut params = Vec::new();
        if self.is('(') {
            while !self.is(')') {
                params.push(self.variable()?);
                self.is(',');
            }
        }
        let mut entry = RawEntry {
            name,
            params,
            directives: Vec::new(),
            statements: Vec::new(),
            scopes: vec![Scope::default()],
            sources: Vec::new(),
            registers: [0; 3],
        };
        while !self.is('{') {
            let directive = self.word("a launch directive or `{`")?;
            let mut numbers = Vec::new();
            while let Some(Token::Number(_)) = self.peek() {
                numbers.push(self.count("a number")?);
                self.is(',');
            }
            entry.directives.push((directive, numbers));
        }
        self.body(&mut entry)?;
        Ok(entry)
    }

    fn body(&mut self, entry: &mut RawEntry<'a>) -> Result<(), ParseError> {
        let mut scope = 0;
        let mut open = vec![0];
        loop {
            let position = entry.statements.len() as u32;
            match self.peek() {
                Some(Token::Punct('{')) => {
                    self.at += 1;
                    entry.scopes.push(Scope { parent: scope, ..Scope::default() });
                    scope = entry.scopes.len() - 1;
                    open.push(scope);
                }
                Some(Token::Punct('}')) => {
                    self.at += 1;
                    open.pop();
                    match open.last() {
                        Some(outer) => scope = *outer,
                        None => return Ok(()),
                    }
                }
                Some(Token::Punct(';')) => self.at += 1,
                Some(Token::Word(".reg")) => self.registers(entry, scope)?,
                Some(Token::Word(".pragma")) => self.skip_line(),
                Some(Token::Word(".loc")) => self.loc(entry)?,
                Some(Token::Word(name)) if self.label_follows() => {
                    self.at += 2;
                    if entry.scopes[scope].labels.insert(name, position).is_some() {
                        let what = format!("label `{name}` stands twice in its scope");
                        return Err(ParseError::Syntax { line: self.line(), what });
                    }
                }
                _ => {
                    let source = entry.sources.len().checked_sub(1).map(|at| at as u32);
                    let statement = Statement { source, ..self.statement(scope)? };
                    entry.statements.push(statement);
                }
            }
        }
    }

    fn label_follows(&self) -> bool {
        matches!(self.tokens.get(self.at + 1), Some((Token::Punct(':'), _)))
    }

    /// `.reg .b32 %r<16>, tmp;`
    fn registers(&mut self, entry: &mut RawEntry<'a>, scope: usize) -> Result<(), ParseError> {
        self.at += 1;
        let ty = self.word("a register type")?;
        let (class, file) = match ty {
            ".pred" => (Class::Pred, 0),
            ".b8" | ".u8" | ".s8" | ".b16" | ".u16" | ".s16" | ".f16" | ".bf16" => (Class::B16, 1),
            ".b32" | ".u32" | ".s32" | ".f32" | ".f16x2" | ".bf16x2" => (Class::B32, 1),
            ".b64" | ".u64" | ".s64" | ".f64" => (Class::B64, 2),
            _ => {
                self.at -= 1;
                return self.expected("a register type that is supported");
            }
        };
        loop {
            let name = self.word("a register")?;
            let first = Reg { class, index: entry.registers[file] };
            if self.is('<') {
                let count = self.count("a number of registers")?;
                self.expect('>')?;
                entry.scopes[scope].ranges.push((name, count, first));
                entry.registers[file] += count;
            } else {
                entry.scopes[scope].registers.insert(name, first);
                entry.registers[file] += 1;
            }
            if !self.is(',') {
                return self.expect(';');
            }
        }
    }

    fn statement(&mut self, scope: usize) -> Result<Statement<'a>, ParseError> {
        let line = self.line();
        let guard = if self.is('@') {
            let negated = self.is('!');
            Some((self.word("a predicate")?, negated))
        } else {
            None
        };
        let opcode = self.word("an instruction")?;
        let mut operands = Vec::new();
        while !self.is(';') {
            operands.push(self.operand()?);
            if !self.is(',') {
                self.expect(';')?;
                break;
            }
        }
        Ok(Statement { opcode, guard, operands, scope, line, source: None })
    }

    fn operand(&mut self) -> Result<RawOperand<'a>, ParseError> {
        if self.is('{') {
            return Ok(RawOperand::Vector(self.list('}')?));
        }
        if self.is('[') {
            return self.address();
        }
        if self.is('!') {
            return Ok(RawOperand::Not(self.word("a predicate")?));
        }
        if let Some(Token::Word(name)) = self.peek() {
            self.at += 1;
            if self.is('|') {
                return Ok(RawOperand::Pair(name, self.word("a predicate")?));
            }
            return Ok(RawOperand::Word(name));
        }
        let negative = self.is('-');
        let Some(Token::Number(digits)) = self.peek() else { return self.expected("an operand") };
        let Some(value) = number(digits) else { return self.expected("a number") };
        self.at += 1;
        Ok(match value {
            RawOperand::Integer(value) if negative => RawOperand::Integer(value.wrapping_neg()),
            RawOperand::Double(bits) if negative => RawOperand::Double(bits ^ (1 << 63)),
            value => value,
        })
    }

    fn list(&mut self, close: char) -> Result<Vec<RawOperand<'a>>, ParseError> {
        let mut found = Vec::new();
        while !self.is(close) {
            found.push(self.operand()?);
            if !self.is(',') {
                self.expect(close)?;
                break;
            }
        }
        Ok(found)
    }

    fn address(&mut self) -> Result<RawOperand<'a>, ParseError> {
        let base = self.operand()?;
        let signed = self.is('+') || self.peek() == Some(Token::Punct('-'));
        let offset = if signed { self.integer("an offset")? } else { 0 };
        let coordinates = if self.is(',') { self.list(']')? } else { Vec::new() };
        if coordinates.is_empty() {
            self.expect(']')?;
        }
        Ok(RawOperand::Address(Box::new(base), offset, coordinates))
    }
}

/// Bytes of one element of a variable's type.
fn element_bytes(word: &str) -> Option<usize> {
    Some(match word {
        ".b8" | ".u8" | ".s8" => 1,
        ".b16" | ".u16" | ".s16" | ".f16" | ".bf16" => 2,
        ".b32" | ".u32" | ".s32" | ".f32" | ".f16x2" => 4,
        ".b64" | ".u64" | ".s64" | ".f64" => 8,
        _ => return None,
    })
}

/// An integer literal: decimal, `0x…`, `0b…`, octal, with an optional `U`.
fn integer(digits: &str) -> Option<i64> {
    let digits = digits.strip_suffix('U').unwrap_or(digits);
    let value = if let Some(hex) = digits.strip_prefix("0x").or(digits.strip_prefix("0X")) {
        u64::from_str_radix(hex, 16)
    } else if let Some(bits) = digits.strip_prefix("0b") {
        u64::from_str_radix(bits, 2)
    } else if digits.len() > 1 && digits.starts_with('0') {
        u64::from_str_radix(digits, 8)
    } else {
        digits.parse()
    };
    value.ok().map(|value| value as i64)
}

fn number<'a>(digits: &str) -> Option<RawOperand<'a>> {
    if let Some(hex) = digits.strip_prefix("0f").or(digits.strip_prefix("0F")) {
        return u32::from_str_radix(hex, 16).ok().map(RawOperand::Float);
    }
    if let Some(hex) = digits.strip_prefix("0d").or(digits.strip_prefix("0D")) {
        return u64::from_str_radix(hex, 16).ok().map(RawOperand::Double);
    }
    if let Some(value) = integer(digits) {
        return Some(RawOperand::Integer(value));
    }
    let value: f64 = digits.parse().ok()?;
    Some(RawOperand::Double(value.to_bits()))
}
