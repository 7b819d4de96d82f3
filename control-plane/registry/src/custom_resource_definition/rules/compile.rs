//! Reading an expression, within bounds.

use std::panic::AssertUnwindSafe;

use coracle_api::schema::structural::Structural;
use kube_cel::cel::common::ast::{EntryExpr, Expr, IdedExpr, LiteralValue, MapEntryExpr, MapExpr};
use kube_cel::cel::{Context, Program, Value as Cel};

use super::types;

/// The longest expression, in bytes, and the deepest.
const MAX_LENGTH: usize = 8 * 1024;
const MAX_DEPTH: usize = 64;

/// The stack that reading and evaluating get: the parser and the interpreter recurse.
const STACK: usize = 64 << 20;

/// Names that are neither variables of a rule nor of its loops: types, and the first part of functions' names.
const KNOWN: [&str; 27] = [
    "bool",
    "bytes",
    "double",
    "int",
    "list",
    "map",
    "null_type",
    "string",
    "type",
    "uint",
    "timestamp",
    "duration",
    "optional",
    "math",
    "sets",
    "ip",
    "cidr",
    "base64",
    "format",
    "jsonpatch",
    "strings",
    "lists",
    "google",
    "url",
    "quantity",
    "semver",
    "dyn",
];

/// An expression that was read.
pub struct Expression {
    root: IdedExpr,
    pub depth: usize,
    /// How deep its loops are nested.
    pub loops: u32,
    pub size: usize,
    /// How many of its functions may make text much longer than it was.
    pub growths: u32,
    pub uses_old: bool,
}

impl Expression {
    /// The value over some variables; the error is in words.
    pub fn run(&self, context: &Context<'_>) -> Result<Cel, String> {
        // The library negates the smallest number without a look, which panics where overflows are checked.
        let value = std::panic::catch_unwind(AssertUnwindSafe(|| Cel::resolve(&self.root, context)));
        value.map_err(|_| "evaluation failed".to_owned())?.map_err(|e| words(&e.to_string()))
    }
}

/// Errors begin with a small letter, as Kubernetes' do.
fn words(error: &str) -> String {
    let mut letters = error.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}

/// Runs work on a thread with a large stack; `None` if it panicked.
pub(crate) fn with_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Option<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work).ok()?;
        thread.join().ok()
    })
}

/// Reads a rule of a schema; the error is in words. Call it with a large stack.
pub(super) fn compile(text: &str, at: &Place<'_>, wanted: &str) -> Result<Expression, String> {
    let expression = compile_for(text, &["self", "oldSelf"])?;
    types::check(&expression.root, at.schema, at.object, !at.optional_old, wanted)?;
    Ok(expression)
}

/// Where a rule of a schema stands.
pub(super) struct Place<'a> {
    pub schema: &'a Structural,
    /// Whether its value is a whole object.
    pub object: bool,
    /// Whether `oldSelf` is optional.
    pub optional_old: bool,
}

/// Reads an expression over variables of these names. Call it with a large stack.
pub(crate) fn compile_for(text: &str, variables: &[&str]) -> Result<Expression, String> {
    if text.len() > MAX_LENGTH {
        return Err(format!("an expression may not be longer than {MAX_LENGTH} bytes"));
    }
    let program = Program::compile(text).map_err(|e| e.to_string())?;
    let mut root = program.expression().clone();
    let mut walk = Walk { scope: variables.iter().map(ToString::to_string).collect(), ..Walk::default() };
    walk.expr(&root, 1, 0);
    if let Some(name) = walk.unknown {
        return Err(format!("undeclared reference to '{name}' (in container '')"));
    }
    if walk.depth > MAX_DEPTH {
        return Err(format!("an expression may not be nested more than {MAX_DEPTH} levels deep"));
    }
    simplify(&mut root);
    Ok(Expression {
        root,
        depth: walk.depth,
        loops: walk.loops,
        size: walk.size,
        growths: walk.growths,
        uses_old: walk.uses_old,
    })
}

/// Makes maps of messages, which the interpreter does not know, and one variable of `authorizer.requestResource`.
fn simplify(at: &mut IdedExpr) {
    match &mut at.expr {
        Expr::Unspecified | Expr::Literal(_) | Expr::Ident(_) => {}
        Expr::Call(call) => {
            call.target.iter_mut().for_each(|target| simplify(target));
            call.args.iter_mut().for_each(simplify);
        }
        Expr::Comprehension(c) => {
            for part in
                [&mut c.iter_range, &mut c.accu_init, &mut c.loop_cond, &mut c.loop_step, &mut c.result]
            {
                simplify(part);
            }
        }
        Expr::List(list) => list.elements.iter_mut().for_each(simplify),
        Expr::Map(map) => {
            for entry in &mut map.entries {
                if let EntryExpr::MapEntry(entry) = &mut entry.expr {
                    simplify(&mut entry.key);
                    simplify(&mut entry.value);
                }
            }
        }
        Expr::Select(select) => {
            let authorizer = matches!(&select.operand.expr, Expr::Ident(name) if name == "authorizer");
            if authorizer && select.field == "requestResource" {
                at.expr = Expr::Ident("@requestResource".into());
            } else {
                simplify(&mut select.operand);
            }
        }
        Expr::Struct(message) => {
            let mut entries = std::mem::take(&mut message.entries);
            for entry in &mut entries {
                if let EntryExpr::StructField(field) = &mut entry.expr {
                    let mut value = std::mem::take(&mut field.value);
                    simplify(&mut value);
                    let key = LiteralValue::String(super::values::unescaped(&field.field).as_str().into());
                    let key = IdedExpr { id: value.id, expr: Expr::Literal(key) };
                    entry.expr = EntryExpr::MapEntry(MapEntryExpr { key, value, optional: field.optional });
                }
            }
            at.expr = Expr::Map(MapExpr { entries });
        }
    }
}

#[derive(Default)]
struct Walk {
    depth: usize,
    loops: u32,
    size: usize,
    growths: u32,
    uses_old: bool,
    unknown: Option<String>,
    scope: Vec<String>,
}

impl Walk {
    fn expr(&mut self, at: &IdedExpr, depth: usize, loops: u32) {
        self.depth = self.depth.max(depth);
        self.loops = self.loops.max(loops);
        self.size += 1;
        let below = depth + 1;
        match &at.expr {
            Expr::Unspecified | Expr::Literal(_) => {}
            Expr::Ident(name) => self.ident(name),
            Expr::Call(call) => {
                if matches!(call.func_name.as_str(), "replace" | "format" | "join") {
                    self.growths += 1;
                }
                if let Some(target) = &call.target {
                    self.expr(target, below, loops);
                }
                call.args.iter().for_each(|arg| self.expr(arg, below, loops));
            }
            Expr::Comprehension(c) => {
                self.expr(&c.iter_range, below, loops);
                self.expr(&c.accu_init, below, loops);
                let known = self.scope.len();
                self.scope.extend([c.iter_var.clone(), c.accu_var.clone()]);
                self.scope.extend(c.iter_var2.clone());
                for part in [&c.loop_cond, &c.loop_step, &c.result] {
                    self.expr(part, below, loops + 1);
                }
                self.scope.truncate(known);
            }
            Expr::List(list) => list.elements.iter().for_each(|e| self.expr(e, below, loops)),
            Expr::Map(map) => map.entries.iter().for_each(|e| self.entry(&e.expr, below, loops)),
            Expr::Struct(s) => {
                // The messages of admission policies.
                let name = s.type_name.trim_start_matches('.');
                if name != "JSONPatch" && name != "Object" && !name.starts_with("Object.") {
                    self.unknown.get_or_insert_with(|| name.to_owned());
                }
                s.entries.iter().for_each(|e| self.entry(&e.expr, below, loops));
            }
            Expr::Select(select) => self.expr(&select.operand, below, loops),
        }
    }

    fn entry(&mut self, entry: &EntryExpr, depth: usize, loops: u32) {
        match entry {
            EntryExpr::StructField(field) => self.expr(&field.value, depth, loops),
            EntryExpr::MapEntry(entry) => {
                self.expr(&entry.key, depth, loops);
                self.expr(&entry.value, depth, loops);
            }
        }
    }

    fn ident(&mut self, name: &str) {
        self.uses_old |= name == "oldSelf";
        let known = name.starts_with('@') || KNOWN.contains(&name) || self.scope.iter().any(|n| n == name);
        if !known {
            self.unknown.get_or_insert_with(|| name.to_owned());
        }
    }
}
