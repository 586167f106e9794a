//! Runs a parsed template.

use super::parse::{Branch, Node, Operand, Pipe, Set};
use super::value::{Data, Value};
use super::{TemplateError, builtin};

/// Nodes that one execution may visit: far more than any configuration file needs.
const MOST_STEPS: usize = 1_000_000;
/// Templates that may be inside one another.
const MOST_DEPTH: usize = 100;
/// Bytes that one execution may write.
const MOST_OUTPUT: usize = 16 << 20;

pub fn execute(set: &Set, data: &Data<'_>) -> Result<Vec<u8>, TemplateError> {
    let root = Value::Root(data);
    let mut run = Run {
        set,
        out: Vec::new(),
        steps: 0,
        depth: 0,
        variables: vec![("$".to_owned(), root.clone())],
    };
    run.list(&set.main, &root)?;
    Ok(run.out)
}

struct Run<'s, 'a> {
    set: &'s Set,
    out: Vec<u8>,
    steps: usize,
    depth: usize,
    variables: Vec<(String, Value<'a>)>,
}

/// How a list was left.
#[derive(PartialEq, Eq)]
enum Flow {
    Next,
    Break,
    Continue,
}

fn failed(reason: impl Into<String>) -> TemplateError {
    TemplateError::Run(reason.into())
}

impl<'a> Run<'_, 'a> {
    fn step(&mut self) -> Result<(), TemplateError> {
        self.steps += 1;
        match self.steps > MOST_STEPS || self.out.len() > MOST_OUTPUT {
            true => Err(failed("too long: simplify it")),
            false => Ok(()),
        }
    }

    fn list(&mut self, nodes: &[Node], dot: &Value<'a>) -> Result<Flow, TemplateError> {
        for node in nodes {
            self.step()?;
            let flow = match node {
                Node::Text(text) => {
                    self.out.extend_from_slice(text);
                    Flow::Next
                }
                Node::Action(pipe) => {
                    let value = self.pipe(pipe, dot)?;
                    if pipe.variables.is_empty() {
                        let text = value.print().map_err(failed)?;
                        self.out.extend_from_slice(&text);
                    }
                    Flow::Next
                }
                Node::If(branch) => self.branch(branch, dot, false)?,
                Node::With(branch) => self.branch(branch, dot, true)?,
                Node::Range(branch) => self.range(branch, dot)?,
                Node::Template { name, pipe } => {
                    self.template(name, pipe.as_ref(), dot)?;
                    Flow::Next
                }
                Node::Break => Flow::Break,
                Node::Continue => Flow::Continue,
            };
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    fn branch(
        &mut self,
        branch: &Branch,
        dot: &Value<'a>,
        moves_dot: bool,
    ) -> Result<Flow, TemplateError> {
        let scope = self.variables.len();
        let value = self.pipe(&branch.pipe, dot)?;
        let flow = match value.truth() {
            true => self.list(&branch.then, if moves_dot { &value } else { dot }),
            false => self.list(&branch.otherwise, dot),
        };
        self.variables.truncate(scope);
        flow
    }

    fn range(&mut self, branch: &Branch, dot: &Value<'a>) -> Result<Flow, TemplateError> {
        let scope = self.variables.len();
        let value = self.pipe(&branch.pipe, dot)?;
        self.variables.truncate(scope);
        let items: Vec<(Value<'a>, Value<'a>)> = match value {
            Value::Secrets(map) => map
                .iter()
                .map(|(name, secret)| {
                    (
                        Value::Text(name.clone().into_bytes()),
                        Value::Secret(secret),
                    )
                })
                .collect(),
            Value::Part(_, bytes) => bytes
                .iter()
                .enumerate()
                .map(|(i, byte)| (Value::Int(i as i64), Value::Int(i64::from(*byte))))
                .collect(),
            Value::Int(count) if count <= MOST_STEPS as i64 => {
                (0..count).map(|i| (Value::Int(i), Value::Int(i))).collect()
            }
            Value::Nil | Value::Missing => Vec::new(),
            _ => return Err(failed("range can't iterate over this value")),
        };
        if items.is_empty() {
            return self.list(&branch.otherwise, dot);
        }
        for (key, item) in items {
            self.step()?;
            match branch.pipe.variables.as_slice() {
                [] => {}
                [only] => self.bind(only, item.clone(), branch.pipe.assigns),
                [first, second, ..] => {
                    self.bind(first, key, branch.pipe.assigns);
                    self.bind(second, item.clone(), branch.pipe.assigns);
                }
            }
            let flow = self.list(&branch.then, &item)?;
            self.variables.truncate(scope);
            if flow == Flow::Break {
                break;
            }
        }
        Ok(Flow::Next)
    }

    fn template(
        &mut self,
        name: &str,
        pipe: Option<&Pipe>,
        dot: &Value<'a>,
    ) -> Result<(), TemplateError> {
        let set = self.set;
        let nodes = set
            .named
            .get(name)
            .ok_or_else(|| failed(format!("template {name:?} not defined")))?;
        let value = match pipe {
            Some(pipe) => self.pipe(pipe, dot)?,
            None => Value::Nil,
        };
        self.depth += 1;
        if self.depth > MOST_DEPTH {
            return Err(failed("exceeded maximum template depth"));
        }
        let outer = std::mem::replace(&mut self.variables, vec![("$".to_owned(), value.clone())]);
        self.list(nodes, &value)?;
        self.variables = outer;
        self.depth -= 1;
        Ok(())
    }

    fn bind(&mut self, name: &str, value: Value<'a>, assigns: bool) {
        if assigns && let Some((_, slot)) = self.variables.iter_mut().rev().find(|(n, _)| n == name)
        {
            *slot = value;
            return;
        }
        self.variables.push((name.to_owned(), value));
    }

    fn pipe(&mut self, pipe: &Pipe, dot: &Value<'a>) -> Result<Value<'a>, TemplateError> {
        self.step()?;
        let mut value: Option<Value<'a>> = None;
        for command in &pipe.commands {
            value = Some(self.command(command, dot, value)?);
        }
        let value = value.unwrap_or(Value::Nil);
        // `range` binds its variables to the items instead.
        for name in &pipe.variables {
            self.bind(name, value.clone(), pipe.assigns);
        }
        Ok(value)
    }

    fn command(
        &mut self,
        command: &[Operand],
        dot: &Value<'a>,
        last: Option<Value<'a>>,
    ) -> Result<Value<'a>, TemplateError> {
        let (first, rest) = command
            .split_first()
            .ok_or_else(|| failed("empty command"))?;
        if let Operand::Function(name) = first {
            let mut args = Vec::with_capacity(rest.len() + 1);
            for operand in rest {
                args.push(self.operand(operand, dot)?);
            }
            args.extend(last);
            return builtin::call(name, &args).map_err(|reason| TemplateError::Call {
                function: name.clone(),
                reason,
            });
        }
        if !rest.is_empty() || last.is_some() {
            return Err(failed("can't give argument to non-function"));
        }
        match first {
            Operand::Nil => Err(failed("nil is not a command")),
            first => self.operand(first, dot),
        }
    }

    fn operand(&mut self, operand: &Operand, dot: &Value<'a>) -> Result<Value<'a>, TemplateError> {
        let fields = |value: Value<'a>, names: &[String]| {
            names
                .iter()
                .try_fold(value, |value, name| value.field(name))
                .map_err(failed)
        };
        Ok(match operand {
            Operand::Dot => dot.clone(),
            Operand::Nil => Value::Nil,
            Operand::Bool(value) => Value::Bool(*value),
            Operand::Int(value) => Value::Int(*value),
            Operand::Float(value) => Value::Float(*value),
            Operand::Text(text) => Value::Text(text.clone()),
            Operand::Field(names) => fields(dot.clone(), names)?,
            Operand::Variable(name, names) => {
                let value = self
                    .variables
                    .iter()
                    .rev()
                    .find(|(known, _)| known == name)
                    .map(|(_, value)| value.clone())
                    .ok_or_else(|| failed(format!("undefined variable: {name}")))?;
                fields(value, names)?
            }
            Operand::Function(name) => {
                builtin::call(name, &[]).map_err(|reason| TemplateError::Call {
                    function: name.clone(),
                    reason,
                })?
            }
            Operand::Pipe(pipe, names) => {
                let value = self.pipe(pipe, dot)?;
                fields(value, names)?
            }
        })
    }
}
