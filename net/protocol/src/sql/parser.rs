//! Words to a program: recursive descent, one word ahead, each operation written as soon as its operands are.

use super::lexer::{Keyword, Lexer, Token};
use super::program::{Constant, Expression, Op, Order, Place};
use super::{DEPTH_MAX, EXPRESSION_BYTES_MAX, STACK_MAX, SqlError, VARIABLES_MAX};

// An operation that is written without a word of its own is a cast, behind a name.
const _: () = assert!(2 * EXPRESSION_BYTES_MAX <= u16::MAX as usize, "places in a program have 16 bits");

/// What an operand is, as far as it decides what may be done with it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// A literal number.
    Number(f64),
    /// A literal string.
    Text,
    /// `TRUE` or `FALSE`.
    Truth,
    Null,
    Property,
    /// The outcome of a comparison.
    Boolean,
    /// Something with a minus before it.
    Negated,
}

/// An operand that was written, and the byte where it begins.
#[derive(Clone, Copy, Debug)]
struct Operand {
    kind: Kind,
    at: usize,
}

pub(super) struct Parser<'a> {
    text: &'a str,
    lexer: Lexer<'a>,
    /// The next word, and the byte where it begins.
    token: Token<'a>,
    at: usize,
    depth: usize,
    /// Values under way.
    stack: usize,
    ops: Vec<Op>,
    constants: Vec<Constant>,
    words: Vec<Box<str>>,
    names: Vec<Box<str>>,
}

type Parsed<T> = Result<T, SqlError>;

/// Reads a whole expression.
pub(super) fn parse(text: &str) -> Parsed<Expression> {
    if text.len() > EXPRESSION_BYTES_MAX {
        let reason = format!("an expression of {} bytes, at most {EXPRESSION_BYTES_MAX} are read,", text.len());
        return Err(SqlError::new(text, 0, reason));
    }
    let mut parser = Parser {
        text,
        lexer: Lexer::new(text),
        token: Token::End,
        at: 0,
        depth: 0,
        stack: 0,
        ops: Vec::new(),
        constants: Vec::new(),
        words: Vec::new(),
        names: Vec::new(),
    };
    parser.step()?;
    let whole = parser.or()?;
    parser.boolean(whole)?;
    if parser.token != Token::End {
        return Err(parser.unexpected("the end"));
    }
    Ok(Expression {
        ops: parser.ops.into(),
        constants: parser.constants.into(),
        words: parser.words.into(),
        names: parser.names.into(),
    })
}

impl<'a> Parser<'a> {
    fn or(&mut self) -> Parsed<Operand> {
        self.chain(Keyword::Or, Parser::and)
    }

    fn and(&mut self) -> Parsed<Operand> {
        self.chain(Keyword::And, Parser::equality)
    }

    /// Operands of `AND` or `OR`. The second is jumped over when the first decides.
    fn chain(&mut self, keyword: Keyword, operand: fn(&mut Parser<'a>) -> Parsed<Operand>) -> Parsed<Operand> {
        let mut left = operand(self)?;
        while self.take(keyword)? {
            self.boolean(left)?;
            let jump = self.ops.len();
            let is_or = keyword == Keyword::Or;
            self.write(Op::Decided { truth: is_or, end: 0 }, 0)?;
            let right = operand(self)?;
            self.boolean(right)?;
            self.write(if is_or { Op::Or } else { Op::And }, -1)?;
            let end = self.ops.len() as u16;
            self.ops[jump] = Op::Decided { truth: is_or, end };
            left.kind = Kind::Boolean;
        }
        Ok(left)
    }

    fn equality(&mut self) -> Parsed<Operand> {
        let mut left = self.compared()?;
        loop {
            if self.take(Keyword::Is)? {
                let not = self.take(Keyword::Not)?;
                if !self.take(Keyword::Null)? {
                    return Err(self.unexpected("NULL"));
                }
                self.write(Op::IsNull, 0)?;
                self.negate_if(not)?;
            } else if self.token == Token::Sign("=") || self.token == Token::Sign("<>") {
                let not = self.token == Token::Sign("<>");
                self.step()?;
                let right = self.compared()?;
                for operand in [left, right] {
                    if operand.kind == Kind::Null {
                        return Err(self.error(operand.at, "NULL is compared with IS"));
                    }
                }
                if left.kind == Kind::Truth && matches!(right.kind, Kind::Number(_) | Kind::Text) {
                    return Err(self.error(right.at, "a truth value is not compared with another literal"));
                }
                self.write(Op::Equal, -1)?;
                self.negate_if(not)?;
            } else {
                return Ok(left);
            }
            left.kind = Kind::Boolean;
        }
    }

    fn compared(&mut self) -> Parsed<Operand> {
        const ORDERS: [(&str, Order); 4] =
            [(">", Order::Greater), (">=", Order::GreaterEqual), ("<", Order::Less), ("<=", Order::LessEqual)];
        let mut left = self.unary()?;
        loop {
            let order = ORDERS.into_iter().find(|(sign, _)| self.token == Token::Sign(sign));
            if let Some((_, order)) = order {
                self.step()?;
                let right = self.unary()?;
                self.ordered(left)?;
                self.ordered(right)?;
                self.write(Op::Compare(order), -1)?;
            } else {
                let begin = self.at;
                let not = self.take(Keyword::Not)?;
                match self.token {
                    Token::Keyword(Keyword::Between) => self.between(left, not)?,
                    Token::Keyword(Keyword::In) => self.within(left, not)?,
                    Token::Keyword(Keyword::Contains) => self.part(Place::Anywhere, not)?,
                    Token::Keyword(Keyword::StartsWith) => self.part(Place::Start, not)?,
                    Token::Keyword(Keyword::EndsWith) => self.part(Place::End, not)?,
                    _ if not => return Err(self.unexpected("BETWEEN, IN, CONTAINS, STARTSWITH or ENDSWITH")),
                    _ => {
                        assert!(begin == self.at, "no word was taken");
                        return Ok(left);
                    }
                }
            }
            left.kind = Kind::Boolean;
        }
    }

    fn between(&mut self, value: Operand, not: bool) -> Parsed<()> {
        self.step()?;
        let low = self.unary()?;
        if !self.take(Keyword::And)? {
            return Err(self.unexpected("AND"));
        }
        let high = self.unary()?;
        for operand in [value, low, high] {
            self.ordered(operand)?;
        }
        if let (Kind::Number(least), Kind::Number(most), false) = (low.kind, high.kind, not)
            && least > most
        {
            return Err(self.error(low.at, "the bounds of BETWEEN are in the wrong order"));
        }
        self.write(Op::Between { not }, -2)
    }

    fn within(&mut self, value: Operand, not: bool) -> Parsed<()> {
        if value.kind != Kind::Property {
            return Err(self.error(value.at, "IN needs a property before it"));
        }
        self.step()?;
        self.sign("(")?;
        let first = self.words.len();
        loop {
            let word = self.string()?;
            self.words.push(word);
            if self.token != Token::Sign(",") {
                break;
            }
            self.step()?;
        }
        self.sign(")")?;
        self.words[first..].sort_unstable();
        let end = self.words.len() as u16;
        self.write(Op::In { first: first as u16, end, not }, 0)
    }

    fn part(&mut self, place: Place, not: bool) -> Parsed<()> {
        self.step()?;
        let text = self.string()?;
        let text = self.constant(Constant::Text(text));
        self.write(Op::Part { place, text, not }, 0)
    }

    fn unary(&mut self) -> Parsed<Operand> {
        let at = self.at;
        match self.token {
            Token::Sign("+") => {
                self.descend()?;
                let operand = self.unary()?;
                self.depth -= 1;
                Ok(Operand { at, ..operand })
            }
            Token::Sign("-") => {
                self.descend()?;
                self.unary()?;
                self.depth -= 1;
                self.write(Op::Negate, 0)?;
                Ok(Operand { kind: Kind::Negated, at })
            }
            Token::Keyword(Keyword::Not) => {
                self.descend()?;
                let operand = self.unary()?;
                self.depth -= 1;
                self.boolean(operand)?;
                self.write(Op::Not, 0)?;
                Ok(Operand { kind: Kind::Boolean, at })
            }
            _ => self.primary(),
        }
    }

    fn primary(&mut self) -> Parsed<Operand> {
        let at = self.at;
        let (kind, constant) = match self.token {
            Token::Sign("(") => {
                self.descend()?;
                let inside = self.or()?;
                self.depth -= 1;
                self.sign(")")?;
                return Ok(Operand { at, ..inside });
            }
            Token::Name(name) => {
                let name = self.name(name)?;
                self.write(Op::Property(name), 1)?;
                self.step()?;
                return Ok(Operand { kind: Kind::Property, at });
            }
            Token::Text(text) => (Kind::Text, Constant::Text(text.replace("''", "'").into())),
            Token::Whole(digits) => {
                let number: i64 = digits.parse().map_err(|_| self.error(at, "a number of more than 64 bits"))?;
                let constant = i32::try_from(number).map_or(Constant::Long(number), Constant::Int);
                (Kind::Number(number as f64), constant)
            }
            Token::Float(digits) => {
                let number: f64 = digits.parse().map_err(|_| self.error(at, "no number"))?;
                let mantissa = digits.split(['e', 'E']).next().unwrap_or_default();
                let is_lost = number == 0.0 && mantissa.bytes().any(|byte| (b'1'..=b'9').contains(&byte));
                if number.is_infinite() || is_lost {
                    return Err(self.error(at, "a number too large or too small for a double"));
                }
                (Kind::Number(number), Constant::Double(number))
            }
            Token::Keyword(Keyword::True) => (Kind::Truth, Constant::Bool(true)),
            Token::Keyword(Keyword::False) => (Kind::Truth, Constant::Bool(false)),
            Token::Keyword(Keyword::Null) => (Kind::Null, Constant::Null),
            _ => return Err(self.unexpected("a property, a literal or a parenthesis")),
        };
        let constant = self.constant(constant);
        self.write(Op::Constant(constant), 1)?;
        self.step()?;
        Ok(Operand { kind, at })
    }

    /// Makes a truth value of an operand, if that may be.
    fn boolean(&mut self, operand: Operand) -> Parsed<()> {
        match operand.kind {
            Kind::Property => self.write(Op::Cast, 0),
            Kind::Truth | Kind::Null | Kind::Boolean => Ok(()),
            Kind::Number(_) | Kind::Text | Kind::Negated => Err(self.error(operand.at, "this is no truth value")),
        }
    }

    /// Only numbers and properties have an order.
    fn ordered(&self, operand: Operand) -> Parsed<()> {
        match operand.kind {
            Kind::Number(_) | Kind::Property | Kind::Negated => Ok(()),
            Kind::Text | Kind::Truth | Kind::Null | Kind::Boolean => {
                Err(self.error(operand.at, "only numbers and properties are compared by size"))
            }
        }
    }

    fn negate_if(&mut self, not: bool) -> Parsed<()> {
        if not { self.write(Op::Not, 0) } else { Ok(()) }
    }

    fn write(&mut self, op: Op, values: isize) -> Parsed<()> {
        self.ops.push(op);
        self.stack = self.stack.strict_add_signed(values);
        if self.stack > STACK_MAX {
            return Err(self.error(self.at, format!("an expression that needs more than {STACK_MAX} values at once")));
        }
        Ok(())
    }

    fn constant(&mut self, constant: Constant) -> u16 {
        self.constants.push(constant);
        self.constants.len() as u16 - 1
    }

    /// The place of a property's name.
    fn name(&mut self, name: &str) -> Parsed<u16> {
        if let Some(place) = self.names.iter().position(|known| **known == *name) {
            return Ok(place as u16);
        }
        if self.names.len() == VARIABLES_MAX {
            return Err(self.error(self.at, format!("an expression with more than {VARIABLES_MAX} properties")));
        }
        self.names.push(name.into());
        Ok(self.names.len() as u16 - 1)
    }

    fn string(&mut self) -> Parsed<Box<str>> {
        let Token::Text(text) = self.token else { return Err(self.unexpected("a string")) };
        self.step()?;
        Ok(text.replace("''", "'").into())
    }

    fn sign(&mut self, sign: &'static str) -> Parsed<()> {
        if self.token == Token::Sign(sign) { self.step() } else { Err(self.unexpected(sign)) }
    }

    fn take(&mut self, keyword: Keyword) -> Parsed<bool> {
        let is_there = self.token == Token::Keyword(keyword);
        if is_there {
            self.step()?;
        }
        Ok(is_there)
    }

    /// Takes one word that leads deeper.
    fn descend(&mut self) -> Parsed<()> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(self.error(self.at, format!("an expression nested deeper than {DEPTH_MAX}")));
        }
        self.step()
    }

    fn step(&mut self) -> Parsed<()> {
        (self.at, self.token) = self.lexer.next()?;
        Ok(())
    }

    fn error(&self, at: usize, reason: impl Into<String>) -> SqlError {
        SqlError::new(self.text, at, reason)
    }

    fn unexpected(&self, wanted: &str) -> SqlError {
        let found = match &self.token {
            Token::Keyword(_) | Token::Name(_) | Token::Whole(_) | Token::Float(_) | Token::Sign(_) => {
                let rest = &self.text[self.at..];
                let end = rest.find([' ', '\t', '\n', '\r', '(', ')', ',', '\'']).unwrap_or(rest.len());
                let end = end.max(rest.chars().next().map_or(0, char::len_utf8)).min(SHOWN_BYTES);
                format!("`{}`", &rest[..rest.floor_char_boundary(end)])
            }
            Token::Text(_) => "a string".to_owned(),
            Token::End => "the end".to_owned(),
        };
        self.error(self.at, format!("{wanted} is expected, but there is {found}"))
    }
}

/// Of a wrong word, so much is shown, in bytes.
const SHOWN_BYTES: usize = 40;
