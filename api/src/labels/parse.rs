//! The parser of the query form of label selectors. It gives the errors of Kubernetes' parser, word for word.

use super::{Operator, Requirement, key_errors};
use crate::field;

#[derive(Clone, Copy, PartialEq, Debug)]
enum Token {
    End,
    Error,
    Identifier,
    Comma,
    Open,
    Close,
    Not,
    Is(Operator),
}

struct Parser<'a> {
    tokens: Vec<(Token, &'a str)>,
    at: usize,
}

pub(super) fn parse(text: &str) -> Result<Vec<Requirement>, String> {
    let mut parser = Parser { tokens: lex(text), at: 0 };
    let mut requirements = Vec::new();
    loop {
        match parser.peek_value() {
            (Token::Identifier | Token::Not, _) => {}
            (Token::End, _) => return Ok(requirements),
            (_, found) => {
                return Err(format!("found '{found}', expected: !, identifier, or 'end of string'"));
            }
        }
        let r = parser.requirement().map_err(|e| format!("unable to parse requirement: {e}"))?;
        requirements.push(r);
        match parser.next_value() {
            (Token::End, _) => return Ok(requirements),
            (Token::Comma, _) => match parser.peek_value() {
                (Token::Identifier | Token::Not, _) => {}
                (_, found) => return Err(format!("found '{found}', expected: identifier after ','")),
            },
            (_, found) => return Err(format!("found '{found}', expected: ',' or 'end of string'")),
        }
    }
}

impl<'a> Parser<'a> {
    fn peek(&self) -> (Token, &'a str) {
        self.tokens.get(self.at).copied().unwrap_or((Token::End, ""))
    }

    // Where a value may stand, `in` and `notin` are plain identifiers.
    fn peek_value(&self) -> (Token, &'a str) {
        match self.peek() {
            (Token::Is(Operator::In | Operator::NotIn), text) => (Token::Identifier, text),
            other => other,
        }
    }

    fn next_value(&mut self) -> (Token, &'a str) {
        let token = self.peek_value();
        self.at += 1;
        token
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let mut operator = None;
        let (mut token, mut key) = self.next_value();
        if token == Token::Not {
            operator = Some(Operator::DoesNotExist);
            (token, key) = self.next_value();
        }
        if token != Token::Identifier {
            return Err(format!("found '{key}', expected: identifier"));
        }
        let wrong = key_errors(key);
        if !wrong.is_empty() {
            return Err(field::aggregate(&wrong));
        }
        if operator.is_none() && matches!(self.peek_value().0, Token::End | Token::Comma) {
            operator = Some(Operator::Exists);
        }
        if let Some(operator) = operator {
            return Requirement::new(key, operator, Vec::new());
        }
        let (token, found) = self.peek();
        self.at += 1;
        let Token::Is(operator) = token else {
            return Err(format!("found '{found}', expected: in, notin, =, ==, !=, gt, lt"));
        };
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => vec![self.exact_value()?],
        };
        Requirement::new(key, operator, values)
    }

    fn exact_value(&mut self) -> Result<String, String> {
        if matches!(self.peek_value().0, Token::End | Token::Comma) {
            return Ok(String::new());
        }
        match self.next_value() {
            (Token::Identifier, text) => Ok(text.to_string()),
            (_, found) => Err(format!("found '{found}', expected: identifier")),
        }
    }

    fn values(&mut self) -> Result<Vec<String>, String> {
        match self.next_value() {
            (Token::Open, _) => {}
            (_, found) => return Err(format!("found '{found}' expected: '('")),
        }
        match self.peek_value() {
            (Token::Identifier | Token::Comma, first) => {
                let values = self.identifiers()?;
                match self.next_value().0 {
                    Token::Close => Ok(values),
                    _ => Err(format!("found '{first}', expected: ')'")),
                }
            }
            (Token::Close, _) => {
                self.at += 1;
                Ok(vec![String::new()])
            }
            (_, found) => Err(format!("found '{found}', expected: ',', ')' or identifier")),
        }
    }

    fn identifiers(&mut self) -> Result<Vec<String>, String> {
        let mut values = Vec::new();
        loop {
            match self.next_value() {
                (Token::Identifier, text) => {
                    values.push(text.to_string());
                    match self.peek_value() {
                        (Token::Comma, _) => {}
                        (Token::Close, _) => return Ok(values),
                        (_, found) => return Err(format!("found '{found}', expected: ',' or ')'")),
                    }
                }
                (Token::Comma, _) => {
                    if values.is_empty() {
                        values.push(String::new());
                    }
                    match self.peek_value().0 {
                        Token::Close => {
                            values.push(String::new());
                            return Ok(values);
                        }
                        Token::Comma => {
                            self.at += 1;
                            values.push(String::new());
                        }
                        _ => {}
                    }
                }
                (_, found) => return Err(format!("found '{found}', expected: ',', or identifier")),
            }
        }
    }
}

fn is_special(c: char) -> bool {
    matches!(c, '=' | '!' | '(' | ')' | ',' | '>' | '<')
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

fn symbol(text: &str) -> Option<Token> {
    Some(match text {
        ")" => Token::Close,
        "," => Token::Comma,
        "!" => Token::Not,
        "(" => Token::Open,
        "==" => Token::Is(Operator::DoubleEquals),
        "=" => Token::Is(Operator::Equals),
        ">" => Token::Is(Operator::GreaterThan),
        "<" => Token::Is(Operator::LessThan),
        "!=" => Token::Is(Operator::NotEquals),
        _ => return None,
    })
}

fn lex(text: &str) -> Vec<(Token, &str)> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while let Some(first) = rest.chars().next() {
        let (token, length) = if is_special(first) {
            let two = rest.get(..2).and_then(|t| Some((symbol(t)?, 2)));
            two.or_else(|| rest.get(..1).and_then(|t| Some((symbol(t)?, 1)))).unwrap_or((Token::Error, 1))
        } else {
            let length = rest.find(|c| is_special(c) || is_space(c)).unwrap_or(rest.len());
            let token = match rest.get(..length) {
                Some("in") => Token::Is(Operator::In),
                Some("notin") => Token::Is(Operator::NotIn),
                _ => Token::Identifier,
            };
            (token, length)
        };
        let (text, after) = rest.split_at(length);
        tokens.push((token, text));
        rest = after.trim_start_matches(is_space);
    }
    tokens
}
