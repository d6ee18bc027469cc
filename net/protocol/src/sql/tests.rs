//! Method: a table by hand; a file of expressions with what `rocketmq-filter` 5.5.0 said of them; noise.

use super::*;
use crate::noise::Noise;

/// Properties as people write them: `a=1 b=x`. A value has no blank; `~` stands for one.
fn properties(text: &str) -> String {
    let mut found = String::new();
    for pair in text.split_whitespace() {
        let (name, value) = pair.split_once('=').expect("name=value");
        crate::properties::append(&mut found, name, &value.replace('~', " "));
    }
    found
}

fn matches(expression: &str, text: &str) -> bool {
    let compiled = Expression::compile(expression).unwrap_or_else(|error| panic!("{expression}: {error}"));
    compiled.matches(&properties(text))
}

#[test]
fn truth() {
    for (expression, text, wanted) in [
        ("TRUE", "", true),
        ("false", "", false),
        ("NULL", "", false),
        ("NOT NULL", "", false),
        ("TRUE OR NULL", "", true),
        ("NULL OR TRUE", "", true),
        ("NULL AND FALSE", "", false),
        ("NOT (NULL AND FALSE)", "", true),
        ("NOT (NULL AND TRUE)", "", false),
        // AND before OR, NOT before both and before `=`.
        ("TRUE OR TRUE AND FALSE", "", true),
        ("(TRUE OR TRUE) AND FALSE", "", false),
        ("NOT TRUE OR TRUE", "", true),
        ("NOT a = 1", "a=1", false),
        ("NOT a = 1", "a=2", false),
        ("NOT (a = 1)", "a=2", true),
        // What is missing is unknown, but equal to what is missing too.
        ("a = 1", "", false),
        ("a <> 1", "", false),
        ("NOT (a = 1)", "", false),
        ("a = b", "", true),
        ("a = b", "a=1", false),
        ("a <> b", "a=1", true),
        ("a <> b", "b=1", false),
        ("a > b", "a=2", false),
        ("a IS NULL", "", true),
        ("a IS NULL", "a=x", false),
        ("a IS NOT NULL", "a=x", true),
        ("a is not null", "", false),
        // A property is no truth value.
        ("a", "a=true", false),
        ("NOT a", "a=true", true),
        ("NOT a", "", false),
        ("a = TRUE", "a=True", true),
        ("a = FALSE", "a=no", true),
        ("TRUE = a", "a=true", false),
        // Numbers are read as the literal's type.
        ("a = 5", "a=5", true),
        ("a = 5", "a=+5", true),
        ("a = 5", "a=05", true),
        ("a = 5", "a=5.0", false),
        ("a <> 5", "a=5.0", false),
        ("a <> 5", "a=6", true),
        ("a = 5.0", "a=5", true),
        ("a = 5.", "a=5.0d", true),
        ("a = .5", "a=~0.5~", true),
        ("a = 5e1", "a=50", true),
        ("a > 2147483647", "a=2147483648", false),
        ("a > 2147483648", "a=2147483649", true),
        ("a >= -2147483648", "a=-2147483648", true),
        ("a < 1.5e300", "a=Infinity", false),
        ("a > 1.5e300", "a=NaN", true),
        ("a > 1.5e300", "a=inf", false),
        ("a > 5L", "a=6", true),
        ("a > 0L AND a > 0.0", "a=6", true),
        ("a > b", "a=10 b=9", true),
        ("a > b", "a=10 b=x", false),
        ("a = b", "a=1.0 b=1", false),
        // Who cannot be compared does not match, and nor does the rest.
        ("a > 5 OR TRUE", "a=x", false),
        ("TRUE OR a > 5", "a=x", true),
        ("NOT (a > 5)", "a=x", false),
        ("-5 < a", "a=-4", true),
        ("+5 < a", "a=6", true),
        ("- - 5 = a", "a=5", true),
        ("-a = 5", "a=-5", false),
        ("5 = 5.0 AND 5 < 6 AND 1 <> 2", "", true),
        ("a BETWEEN 1 AND 5", "a=1", true),
        ("a BETWEEN 1 AND 5", "a=5", true),
        ("a BETWEEN 1 AND 5", "a=6", false),
        ("a BETWEEN 1 AND 5", "", false),
        ("a BETWEEN b AND c", "a=5 b=4.5 c=5.5", true),
        ("a NOT BETWEEN 1 AND 5", "a=6", true),
        ("a NOT BETWEEN 1 AND 5", "a=3", false),
        ("a NOT BETWEEN 5 AND 1", "a=3", true),
        ("NOT (a BETWEEN 1 AND 5)", "", false),
        ("a BETWEEN 1 AND 5 AND b = 'x'", "a=2 b=x", true),
        ("a IN ('x', 'y')", "a=y", true),
        ("a IN ('x', 'y')", "a=z", false),
        ("a NOT IN ('x', 'y')", "a=z", true),
        ("a NOT IN ('x', 'y')", "", false),
        ("a IN ('it''s')", "a=it's", true),
        ("a = 'x'", "a=x", true),
        ("a = 'X'", "a=x", false),
        ("a = ''''", "a='", true),
        ("A = 'x'", "a=x", false),
        ("$a_1 = 'é'", "$a_1=é", true),
        ("a CONTAINS 'b'", "a=abc", true),
        ("a contains 'b'", "", false),
        ("a NOT CONTAINS 'b'", "a=acd", true),
        ("a NOT CONTAINS 'b'", "", false),
        ("a CONTAINS ''", "a=x", false),
        ("a NOT CONTAINS ''", "a=x", false),
        ("a STARTSWITH 'ab'", "a=abc", true),
        ("a NOT STARTSWITH 'ab'", "a=abc", false),
        ("a ENDSWITH 'bc'", "a=abc", true),
        ("a NOT ENDSWITH 'ab'", "a=abc", true),
        ("'abc' CONTAINS 'b'", "", true),
        ("5 CONTAINS '5'", "", false),
        ("(a = 1) = (b = 2)", "a=1 b=2", true),
        ("(a = 1) = TRUE", "a=1", true),
        ("(a = 1) <> 5", "a=1", true),
        ("/* a * b ** / */ a -- the value\n = 1 -- done", "a=1", true),
        ("TAGS = 'A' AND KEYS IS NOT NULL", "TAGS=A KEYS=k", true),
        // The last one of a name counts.
        ("a = 2", "a=1 a=2", true),
    ] {
        assert_eq!(matches(expression, text), wanted, "{expression}   with   {text}");
    }
}

#[test]
fn errors_say_where() {
    for (expression, line, column, reason) in [
        ("", 1, 1, "a property, a literal or a parenthesis is expected, but there is the end"),
        ("a >", 1, 4, "a property, a literal or a parenthesis is expected, but there is the end"),
        ("a = 1 b", 1, 7, "the end is expected, but there is `b`"),
        ("a LIKE 'x%'", 1, 3, "the end is expected, but there is `LIKE`"),
        ("a = 1\n and (b = 2\n or c @ 3", 3, 7, "'@' is no part of an expression"),
        ("(a = 1", 1, 7, ") is expected, but there is the end"),
        ("é = 1", 1, 1, "'é' is no part of an expression"),
        ("a = 'é' é", 1, 9, "'é' is no part of an expression"),
        ("a = 'x", 1, 5, "a string without its end"),
        ("a = 1 /* x", 1, 7, "a comment without its end"),
        ("a = .", 1, 5, "a point without digits"),
        ("a = 012", 1, 6, "the end is expected, but there is `12`"),
        ("a = 9223372036854775808", 1, 5, "a number of more than 64 bits"),
        ("a > 1.8e308", 1, 5, "a number too large or too small for a double"),
        ("a > 1e-400", 1, 5, "a number too large or too small for a double"),
        ("5", 1, 1, "this is no truth value"),
        ("a AND 'x'", 1, 7, "this is no truth value"),
        ("NOT -a", 1, 5, "this is no truth value"),
        ("a = NULL", 1, 5, "NULL is compared with IS"),
        ("TRUE = 'x'", 1, 8, "a truth value is not compared with another literal"),
        ("a > 'x'", 1, 5, "only numbers and properties are compared by size"),
        ("a > 3 > 2", 1, 1, "only numbers and properties are compared by size"),
        ("TRUE < 2", 1, 1, "only numbers and properties are compared by size"),
        ("a BETWEEN 'a' AND 'b'", 1, 11, "only numbers and properties are compared by size"),
        ("a BETWEEN 5 AND 1", 1, 11, "the bounds of BETWEEN are in the wrong order"),
        ("a BETWEEN 5", 1, 12, "AND is expected, but there is the end"),
        ("a IN ()", 1, 7, "a string is expected, but there is `)`"),
        ("a IN ('x', 5)", 1, 12, "a string is expected, but there is `5`"),
        ("'a' IN ('a')", 1, 1, "IN needs a property before it"),
        ("a NOT 5", 1, 7, "BETWEEN, IN, CONTAINS, STARTSWITH or ENDSWITH is expected, but there is `5`"),
        ("a IS 5", 1, 6, "NULL is expected, but there is `5`"),
        ("a CONTAINS b", 1, 12, "a string is expected, but there is `b`"),
        ("a + 1 = 2", 1, 3, "the end is expected, but there is `+`"),
    ] {
        let error = Expression::compile(expression).expect_err(expression);
        assert_eq!((error.line, error.column, error.reason.as_str()), (line, column, reason), "{expression}");
    }
    let error = Expression::compile("a = 1 b").unwrap_err();
    assert_eq!(error.to_string(), "the end is expected, but there is `b` at line 1, column 7");
}

#[test]
fn bombs_are_refused() {
    let nest = |open: &str, inside: &str, close: &str, depth: usize| {
        [&open.repeat(depth), inside, &close.repeat(depth)].concat()
    };
    assert!(Expression::compile(&nest("(", "a = 1", ")", DEPTH_MAX)).is_ok());
    for (open, close) in [("(", ")"), ("NOT ", ""), ("- ", ""), ("+", ""), ("(a AND ", ")")] {
        let error = Expression::compile(&nest(open, "TRUE", close, DEPTH_MAX + 1)).unwrap_err();
        assert!(error.reason.contains("deeper than 64"), "{open}: {error}");
    }
    // Not deep, but many values wait for their other half.
    let wide = nest("a BETWEEN 1 AND -(b = (c OR ", "TRUE", "))", 20);
    assert!(Expression::compile(&wide).unwrap_err().reason.contains("values at once"), "{wide}");
    let names: Vec<String> = (0..VARIABLES_MAX + 1).map(|number| format!("a{number} = 1")).collect();
    assert!(Expression::compile(&names[1..].join(" OR ")).is_ok());
    assert!(Expression::compile(&names.join(" OR ")).unwrap_err().reason.contains("more than 64 properties"));
    let long = |bytes: usize| format!("a = '{}'", "x".repeat(bytes - 6));
    assert!(Expression::compile(&long(EXPRESSION_BYTES_MAX)).is_ok());
    assert!(Expression::compile(&long(EXPRESSION_BYTES_MAX + 1)).unwrap_err().reason.contains("16385 bytes"));
    // As many operations as fit: the text that makes most of them.
    let dense = ["a"].into_iter().cycle().take(EXPRESSION_BYTES_MAX / 5).collect::<Vec<_>>().join(" OR ");
    assert!(Expression::compile(&dense).is_ok_and(|dense| !dense.matches("a\u{1}true\u{2}")));
}

/// `expression TAB properties TAB outcome`: `T`, `F`, or `E` for one that does not compile. The outcomes are those of
/// the Java evaluator, for expressions made at random from the grammar.
#[test]
fn as_the_java_evaluator() {
    let lines: Vec<&str> = include_str!("java.txt").lines().collect();
    assert!(lines.len() > 1_000);
    for line in lines {
        let [expression, text, outcome] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let found = match Expression::compile(expression) {
            Ok(compiled) if compiled.matches(&properties(text)) => "T",
            Ok(_) => "F",
            Err(_) => "E",
        };
        assert_eq!(found, outcome, "{expression}   with   {text}");
    }
}

#[test]
fn noise_never_panics() {
    let words = [
        "a",
        "b",
        "AND",
        "OR",
        "NOT",
        "(",
        ")",
        "=",
        "<>",
        ">",
        "<=",
        "5",
        "-",
        "+",
        "1.5",
        "'x'",
        "IS",
        "NULL",
        "TRUE",
        "BETWEEN",
        "IN",
        ",",
        "CONTAINS",
        "ENDSWITH",
        "--",
        "/*",
        "*/",
        "'",
        "é",
        "\n",
        "9999999999",
        "1e",
        ".",
    ];
    let text = properties("a=5 b=x");
    let mut noise = Noise::new(92);
    let mut compiled = 0;
    for _ in 0..50_000 {
        let count = 1 + noise.below(12);
        let mut expression = String::new();
        for _ in 0..count {
            expression.push_str(words[noise.below(words.len())]);
            expression.push_str([" ", "", "\t"][noise.below(3)]);
        }
        match Expression::compile(&expression) {
            Ok(found) => {
                compiled += 1;
                let again =
                    Expression::compile(&format!(" ( {expression}\n)")).expect("what compiles does in parentheses");
                assert_eq!(found.matches(&text), again.matches(&text), "{expression}");
            }
            Err(error) => assert!(error.line <= expression.lines().count().max(1) + 1, "{expression}"),
        }
    }
    assert!(compiled > 500, "some of it is legal: {compiled}");
}
