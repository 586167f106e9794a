//! Builds the tree of a template and of those it defines.

use super::lex::{Piece, Spaced, Token, pieces};
use super::{Functions, TemplateError, builtin};
use std::collections::BTreeMap;

/// Deeper nesting than this is nobody's manifest.
const MOST_DEPTH: usize = 100;

#[derive(Debug, Clone)]
pub enum Node {
    Text(Vec<u8>),
    Action(Pipe),
    If(Branch),
    With(Branch),
    Range(Branch),
    Template { name: String, pipe: Option<Pipe> },
    Break,
    Continue,
}

#[derive(Debug, Clone)]
pub struct Branch {
    pub pipe: Pipe,
    pub then: Vec<Node>,
    pub otherwise: Vec<Node>,
}

/// `$x, $y := command | command`
#[derive(Debug, Clone)]
pub struct Pipe {
    pub variables: Vec<String>,
    /// `=` instead of `:=`.
    pub assigns: bool,
    pub commands: Vec<Vec<Operand>>,
}

#[derive(Debug, Clone)]
pub enum Operand {
    Dot,
    Nil,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Vec<u8>),
    Field(Vec<String>),
    Variable(String, Vec<String>),
    Function(String),
    Pipe(Box<Pipe>, Vec<String>),
}

/// A template and those it defines, by name.
#[derive(Debug, Default)]
pub struct Set {
    pub main: Vec<Node>,
    pub named: BTreeMap<String, Vec<Node>>,
}

pub fn parse(text: &[u8], functions: Functions) -> Result<Set, TemplateError> {
    let mut parser = Parser {
        pieces: pieces(text)?.into_iter(),
        functions,
        line: 1,
        named: BTreeMap::new(),
        variables: vec!["$".to_owned()],
        loops: 0,
    };
    let (main, end) = parser.list(0)?;
    if let Some(end) = end {
        return Err(parser.error(format!("unexpected {{{{{}}}}}", end.word)));
    }
    Ok(Set {
        main,
        named: parser.named,
    })
}

struct Parser {
    pieces: std::vec::IntoIter<Piece>,
    functions: Functions,
    line: usize,
    named: BTreeMap<String, Vec<Node>>,
    /// What is in scope.
    variables: Vec<String>,
    loops: usize,
}

/// What ended a list: `end` or `else …`.
struct End {
    word: &'static str,
    rest: Vec<Spaced>,
}

impl Parser {
    fn error(&self, reason: impl Into<String>) -> TemplateError {
        TemplateError::Parse {
            line: self.line,
            reason: reason.into(),
        }
    }

    fn list(&mut self, depth: usize) -> Result<(Vec<Node>, Option<End>), TemplateError> {
        if depth > MOST_DEPTH {
            return Err(self.error("nested too deeply"));
        }
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.next() {
            let (tokens, line) = match piece {
                Piece::Text(text) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Piece::Action { tokens, line } => (tokens, line),
            };
            self.line = line;
            let word = match tokens.first() {
                Some(Spaced {
                    token: Token::Word(word),
                    ..
                }) => word.clone(),
                _ => String::new(),
            };
            let rest = tokens.get(1..).unwrap_or_default();
            match word.as_str() {
                "end" => {
                    self.nothing_more(rest)?;
                    return Ok((
                        nodes,
                        Some(End {
                            word: "end",
                            rest: Vec::new(),
                        }),
                    ));
                }
                "else" => {
                    return Ok((
                        nodes,
                        Some(End {
                            word: "else",
                            rest: rest.to_vec(),
                        }),
                    ));
                }
                "if" => nodes.push(Node::If(self.branch(rest, depth, "if")?)),
                "with" => nodes.push(Node::With(self.branch(rest, depth, "with")?)),
                "range" => nodes.push(Node::Range(self.branch(rest, depth, "range")?)),
                "break" | "continue" => {
                    self.nothing_more(rest)?;
                    if self.loops == 0 {
                        return Err(self.error(format!("{{{{{word}}}}} outside {{{{range}}}}")));
                    }
                    nodes.push(match word.as_str() {
                        "break" => Node::Break,
                        _ => Node::Continue,
                    });
                }
                "define" => {
                    let (name, rest) = self.name(rest)?;
                    self.nothing_more(rest)?;
                    self.definition(name, depth)?;
                }
                "block" => {
                    let (name, rest) = self.name(rest)?;
                    let pipe = self.whole_pipe(rest)?;
                    self.definition(name.clone(), depth)?;
                    nodes.push(Node::Template {
                        name,
                        pipe: Some(pipe),
                    });
                }
                "template" => {
                    let (name, rest) = self.name(rest)?;
                    let pipe = match rest.is_empty() {
                        true => None,
                        false => Some(self.whole_pipe(rest)?),
                    };
                    nodes.push(Node::Template { name, pipe });
                }
                _ => nodes.push(Node::Action(self.whole_pipe(&tokens)?)),
            }
        }
        Ok((nodes, None))
    }

    fn nothing_more(&self, rest: &[Spaced]) -> Result<(), TemplateError> {
        match rest.is_empty() {
            true => Ok(()),
            false => Err(self.error("unexpected words in action")),
        }
    }

    fn name<'a>(&self, rest: &'a [Spaced]) -> Result<(String, &'a [Spaced]), TemplateError> {
        match rest.first().map(|t| &t.token) {
            Some(Token::Text(name)) => Ok((String::from_utf8_lossy(name).into_owned(), &rest[1..])),
            _ => Err(self.error("a template's name must be a string")),
        }
    }

    fn definition(&mut self, name: String, depth: usize) -> Result<(), TemplateError> {
        let outer = std::mem::replace(&mut self.variables, vec!["$".to_owned()]);
        let loops = std::mem::replace(&mut self.loops, 0);
        let (body, end) = self.list(depth + 1)?;
        self.variables = outer;
        self.loops = loops;
        match end {
            Some(End { word: "end", .. }) => {}
            _ => return Err(self.error(format!("missing {{{{end}}}} of template {name:?}"))),
        }
        self.named.insert(name, body);
        Ok(())
    }

    fn branch(
        &mut self,
        rest: &[Spaced],
        depth: usize,
        word: &str,
    ) -> Result<Branch, TemplateError> {
        let scope = self.variables.len();
        let pipe = self.whole_pipe(rest)?;
        let is_range = usize::from(word == "range");
        self.loops += is_range;
        let (then, end) = self.list(depth + 1)?;
        self.loops -= is_range;
        let otherwise = match end {
            None => return Err(self.error(format!("unexpected EOF: {{{{{word}}}}} has no end"))),
            Some(End { word: "else", rest }) => match rest.first().map(|t| &t.token) {
                None => match self.list(depth + 1)? {
                    (nodes, Some(End { word: "end", .. })) => nodes,
                    _ => return Err(self.error("expected {{end}} after {{else}}")),
                },
                Some(Token::Word(next)) if next == word && matches!(word, "if" | "with") => {
                    let word = next.clone();
                    let branch = self.branch(&rest[1..], depth + 1, &word)?;
                    vec![match word.as_str() {
                        "if" => Node::If(branch),
                        _ => Node::With(branch),
                    }]
                }
                Some(_) => return Err(self.error("unexpected words after else")),
            },
            Some(_) => Vec::new(),
        };
        self.variables.truncate(scope);
        Ok(Branch {
            pipe,
            then,
            otherwise,
        })
    }

    fn whole_pipe(&mut self, tokens: &[Spaced]) -> Result<Pipe, TemplateError> {
        let (pipe, used) = self.pipe(tokens, 0)?;
        match used == tokens.len() {
            true => Ok(pipe),
            false => Err(self.error("unexpected \")\" in action")),
        }
    }

    /// Parses a pipeline up to the end or a closing parenthesis; returns how many tokens it took.
    fn pipe(&mut self, tokens: &[Spaced], depth: usize) -> Result<(Pipe, usize), TemplateError> {
        if depth > MOST_DEPTH {
            return Err(self.error("nested too deeply"));
        }
        let (variables, assigns, mut at) = self.declaration(tokens)?;
        let mut commands = Vec::new();
        let mut command: Vec<Operand> = Vec::new();
        loop {
            let token = tokens.get(at).map(|t| &t.token);
            if matches!(token, None | Some(Token::Close | Token::Pipe)) {
                match command.first() {
                    None => return Err(self.error("missing value for command")),
                    // After the first command only functions can take the value on.
                    Some(Operand::Function(_)) => {}
                    Some(_) if commands.is_empty() => {}
                    Some(_) => {
                        return Err(self.error("non executable command in pipeline"));
                    }
                }
                commands.push(std::mem::take(&mut command));
                match token {
                    Some(Token::Pipe) => at += 1,
                    _ => break,
                }
                continue;
            }
            let (operand, used) = self.operand(&tokens[at..], depth)?;
            command.push(operand);
            at += used;
        }
        for variable in &variables {
            if !assigns {
                self.variables.push(variable.clone());
            }
        }
        let pipe = Pipe {
            variables,
            assigns,
            commands,
        };
        Ok((pipe, at))
    }

    fn declaration(&self, tokens: &[Spaced]) -> Result<(Vec<String>, bool, usize), TemplateError> {
        let token = |i: usize| tokens.get(i).map(|t| &t.token);
        let (names, next) = match (token(0), token(1), token(2)) {
            (Some(Token::Variable(first)), Some(Token::Comma), Some(Token::Variable(second))) => {
                (vec![first.clone(), second.clone()], 3)
            }
            (Some(Token::Variable(first)), _, _) => (vec![first.clone()], 1),
            _ => return Ok((Vec::new(), false, 0)),
        };
        match token(next) {
            Some(Token::Declare) => Ok((names, false, next + 1)),
            Some(Token::Assign) => {
                for name in &names {
                    self.known(name)?;
                }
                Ok((names, true, next + 1))
            }
            _ if names.len() == 2 => Err(self.error("expected := after variables")),
            _ => Ok((Vec::new(), false, 0)),
        }
    }

    fn known(&self, name: &str) -> Result<(), TemplateError> {
        match self.variables.iter().any(|known| known == name) {
            true => Ok(()),
            false => Err(self.error(format!("undefined variable {name:?}"))),
        }
    }

    fn operand(
        &mut self,
        tokens: &[Spaced],
        depth: usize,
    ) -> Result<(Operand, usize), TemplateError> {
        let mut used = 1;
        let chain = |used: &mut usize| {
            let mut fields = Vec::new();
            while let Some(Spaced {
                token: Token::Field(name),
                spaced: false,
            }) = tokens.get(*used)
            {
                fields.push(name.clone());
                *used += 1;
            }
            fields
        };
        let operand = match &tokens[0].token {
            Token::Dot => Operand::Dot,
            Token::Field(name) => {
                let mut fields = vec![name.clone()];
                fields.extend(chain(&mut used));
                Operand::Field(fields)
            }
            Token::Variable(name) => {
                self.known(name)?;
                Operand::Variable(name.clone(), chain(&mut used))
            }
            Token::Word(word) => match word.as_str() {
                "true" => Operand::Bool(true),
                "false" => Operand::Bool(false),
                "nil" => Operand::Nil,
                name if builtin::exists(name, self.functions) => Operand::Function(name.to_owned()),
                name => return Err(self.error(format!("function {name:?} not defined"))),
            },
            Token::Text(text) => Operand::Text(text.clone()),
            Token::Int(value) => Operand::Int(*value),
            Token::Float(value) => Operand::Float(*value),
            Token::Open => {
                let (pipe, inner) = self.pipe(&tokens[1..], depth + 1)?;
                used += inner;
                if tokens.get(used).map(|t| &t.token) != Some(&Token::Close) {
                    return Err(self.error("unclosed left paren"));
                }
                used += 1;
                Operand::Pipe(Box::new(pipe), chain(&mut used))
            }
            other => return Err(self.error(format!("unexpected {other:?} in operand"))),
        };
        if let Some(next) = tokens.get(used)
            && !next.spaced
            && !matches!(
                next.token,
                Token::Pipe | Token::Close | Token::Comma | Token::Assign | Token::Declare
            )
        {
            return Err(self.error("expected space between operands"));
        }
        Ok((operand, used))
    }
}
