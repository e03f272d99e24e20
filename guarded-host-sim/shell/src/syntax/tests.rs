//! What is read, as what, and what is refused where.

use super::{ast::*, *};

fn read(source: &str) -> Script {
    parse(source).unwrap_or_else(|e| panic!("{source}: {e} at {}", e.span.position(source)))
}

fn refused(source: &str) -> SyntaxError {
    parse(source).expect_err(source)
}

fn first(source: &str) -> StatementKind {
    read(source).statements.remove(0).kind
}

fn expression(source: &str) -> ExprKind {
    match first(source) {
        StatementKind::Pipeline(mut pipeline) => match pipeline.elements.remove(0) {
            Element::Expression { expr, .. } => expr.kind,
            Element::Command(command) => panic!("{source} is the command {command:?}"),
        },
        other => panic!("{source} is {other:?}"),
    }
}

fn command(source: &str) -> Command {
    match first(source) {
        StatementKind::Pipeline(mut pipeline) => match pipeline.elements.pop() {
            Some(Element::Command(command)) => command,
            other => panic!("{source} ends with {other:?}"),
        },
        other => panic!("{source} is {other:?}"),
    }
}

/// The arguments of a command in short.
fn arguments(source: &str) -> Vec<String> {
    let short = |expr: &Expr| expr.span.text(source).to_owned();
    command(source)
        .arguments
        .iter()
        .map(|argument| match argument {
            Argument::Parameter { name, value: None, .. } => format!("-{name}"),
            Argument::Parameter {
                name,
                value: Some(value),
                ..
            } => format!("-{name}:{}", short(value)),
            Argument::Value(value) => short(value),
            Argument::Splat { variable, .. } => format!("@{variable}"),
        })
        .collect()
}

fn argument(source: &str) -> ExprKind {
    match command(source).arguments.pop() {
        Some(Argument::Value(value)) => value.kind,
        other => panic!("{source}: {other:?}"),
    }
}

#[test]
fn a_command_has_a_name_parameters_and_values() {
    let source = "Set-HgsServer -Http -HttpPort 81 -Https:$true 'a b' @more (Get-X) $x.Y[0] # why";
    assert_eq!(
        arguments(source),
        [
            "-Http",
            "-HttpPort",
            "81",
            "-Https:$true",
            "'a b'",
            "@more",
            "(Get-X)",
            "$x.Y[0]"
        ]
    );
    assert_eq!(command(source).name.kind, ExprKind::Text("Set-HgsServer".to_owned()));
    assert_eq!(arguments("Foo `\n  -Bar `\r\n 1"), ["-Bar", "1"]);
    assert_eq!(
        arguments("Foo –Name x —Path y"),
        ["-Name", "x", "-Path", "y"],
        "dashes of a word processor"
    );
    assert_eq!(arguments("Foo -- -Name"), ["-Name"]);
    assert_eq!(argument("Foo -- -Name"), ExprKind::Text("-Name".to_owned()));
    assert_eq!(arguments("Foo a, b ,c d"), ["a, b ,c", "d"]);
}

#[test]
fn words_are_numbers_text_or_text_with_variables() {
    assert_eq!(argument("Foo 5GB"), ExprKind::Integer(5 << 30, "5GB".to_owned()));
    assert_eq!(argument("Foo -7"), ExprKind::Integer(-7, "-7".to_owned()));
    assert_eq!(argument("Foo 0x1F"), ExprKind::Integer(31, "0x1F".to_owned()));
    assert_eq!(argument("Foo 10.0.0.1"), ExprKind::Text("10.0.0.1".to_owned()));
    assert_eq!(argument(r"Foo C:\a\b.xml"), ExprKind::Text(r"C:\a\b.xml".to_owned()));
    assert_eq!(argument("Foo *.xml"), ExprKind::Text("*.xml".to_owned()));
    assert_eq!(
        argument("Foo http://a/b?c=1"),
        ExprKind::Text("http://a/b?c=1".to_owned())
    );
    assert_eq!(argument("Foo 'it''s'"), ExprKind::Text("it's".to_owned()));
    assert_eq!(argument("Foo “curly”"), ExprKind::Text("curly".to_owned()));
    assert_eq!(argument("Foo a`;b"), ExprKind::Text("a;b".to_owned()));
    let ExprKind::Expandable(parts) = argument(r"Foo $path\$name.tcglog") else {
        panic!("a path that begins with a variable")
    };
    assert_eq!(parts.len(), 4, "{parts:?}");
    assert!(matches!(argument(r"Foo $env:TEMP"), ExprKind::Variable(v) if v.scope.as_deref() == Some("env")));
    assert!(matches!(argument("Foo $a.b"), ExprKind::Member { .. }));
    assert!(matches!(argument("Foo (1),(2)"), ExprKind::List(items) if items.len() == 2));
    assert!(matches!(argument("Foo { $_ }"), ExprKind::Block(_)));
    assert!(matches!(argument("Foo (Get-Date).AddDays(-7)"), ExprKind::Call { .. }));
}

#[test]
fn what_a_guide_leaves_to_fill_in_is_kept_as_such() {
    assert_eq!(argument("Foo <vmname>"), ExprKind::Placeholder("vmname".to_owned()));
    let url = argument("Foo http://<IP address or DNS name>/Attestation");
    let ExprKind::Expandable(parts) = url else { panic!() };
    assert!(parts.contains(&Part::Placeholder("IP address or DNS name".to_owned())));
    assert_eq!(
        refused("Foo < file").message,
        "The '<' operator is reserved for future use."
    );
}

#[test]
fn strings_expand_variables_members_not() {
    let ExprKind::Expandable(parts) = expression(r#""a$b.c $($x.y) $env:TEMP\x ${v w} `$n 5$""#) else {
        panic!()
    };
    let text = |text: &str| Part::Text(text.to_owned());
    assert_eq!(parts[0], text("a"));
    assert!(matches!(&parts[1], Part::Variable(v) if v.name == "b"));
    assert_eq!(parts[2], text(".c "));
    assert!(matches!(&parts[3], Part::Sub(_)));
    assert!(matches!(&parts[5], Part::Variable(v) if v.name == "TEMP" && v.scope.as_deref() == Some("env")));
    assert_eq!(parts[6], text(r"\x "));
    assert!(matches!(&parts[7], Part::Variable(v) if v.name == "v w"));
    assert_eq!(parts[8], text(" $n 5$"));
    assert!(
        refused("\"$x:\"")
            .message
            .starts_with("Variable reference is not valid")
    );
    let here = "@'\na $b\n'c'\n'@";
    assert_eq!(expression(here), ExprKind::Text("a $b\n'c'".to_owned()));
    assert!(matches!(expression("@\"\r\na $b\r\n\"@"), ExprKind::Expandable(parts) if parts.len() == 2));
}

#[test]
fn operators_bind_as_the_language_says() {
    let ExprKind::Binary { op, right, .. } = expression("1 + 2 * 3") else {
        panic!()
    };
    assert_eq!(op, BinaryOp::Add);
    assert!(matches!(
        right.kind,
        ExprKind::Binary {
            op: BinaryOp::Multiply,
            ..
        }
    ));
    let ExprKind::Binary { op, left, .. } = expression("-not $a -and $b -eq 3") else {
        panic!()
    };
    assert_eq!(op, BinaryOp::And);
    assert!(matches!(left.kind, ExprKind::Unary(UnaryOp::Not, _)));
    assert!(matches!(
        expression("1..3"),
        ExprKind::Binary {
            op: BinaryOp::Range,
            ..
        }
    ));
    assert!(matches!(
        expression("$a -ceq 'B'"),
        ExprKind::Binary {
            op: BinaryOp::Equal,
            case: true,
            ..
        }
    ));
    assert!(
        matches!(expression("5 - 3 - 1"), ExprKind::Binary { left, .. } if matches!(left.kind, ExprKind::Binary { .. }))
    );
    assert!(
        matches!(expression("[int]'3' + 1"), ExprKind::Binary { left, .. } if matches!(left.kind, ExprKind::Cast(..)))
    );
    assert!(matches!(
        expression("[IO.File]::ReadAllBytes('x')"),
        ExprKind::Call { is_static: true, .. }
    ));
    assert!(matches!(expression("$x[-1].Y++"), ExprKind::Step { .. }));
    assert!(
        matches!(expression("'{0}' -f 1, 2"), ExprKind::Binary { right, .. } if matches!(right.kind, ExprKind::List(_)))
    );
    assert!(matches!(expression("@{ A = 1; 'b c' = $x\n D = Get-X -Y 2 }"), ExprKind::Hashtable(e) if e.len() == 3));
    assert!(refused("1 -foo 2").message.contains("-foo"));
    assert!(refused("$a -eq").incomplete);
    assert!(
        refused("1 -eq )")
            .message
            .contains("value expression following the '-eq'")
    );
}

#[test]
fn statements_are_told_apart() {
    assert!(matches!(
        first("IF ($X -EQ 1) { 2 } ELSEIF ($y) { 3 }\nELSE { 4 }"),
        StatementKind::If { clauses, otherwise: Some(_) } if clauses.len() == 2
    ));
    assert!(matches!(
        first("ForEach ($a In 1..3) { $a }"),
        StatementKind::Foreach { .. }
    ));
    assert!(matches!(
        first("$a.b += Get-X | Sort-Object"),
        StatementKind::Assign {
            operator: Some(BinaryOp::Add),
            ..
        }
    ));
    assert!(matches!(
        first("$a = if ($x) {1} else {2}"),
        StatementKind::Assign { .. }
    ));
    assert!(matches!(first("$a, $b = 1, 2"), StatementKind::Assign { .. }));
    assert!(matches!(first("[int]$z = 3"), StatementKind::Assign { .. }));
    assert!(matches!(
        first("try { Foo } catch [System.Exception], [X] { 1 } finally { 2 }"),
        StatementKind::Try { catches, finally: Some(_), .. } if catches[0].types.len() == 2
    ));
    assert!(matches!(first("while ($true) { break }"), StatementKind::While { .. }));
    assert!(matches!(
        first("do { 1 } until ($x)"),
        StatementKind::While { until: true, .. }
    ));
    assert!(matches!(
        first("for ($i = 0; $i -lt 3; $i++) { $i }"),
        StatementKind::For { .. }
    ));
    assert!(matches!(first("throw \"bad $x\""), StatementKind::Throw(Some(_))));
    assert_eq!(read("if ($a) {1} if ($b) {2}; Foo; Bar\nBaz").statements.len(), 5);
    let script = read("param([Parameter(Mandatory = $true)][string]$Name = 'x', $Other)\n$Name");
    assert_eq!(script.parameters.len(), 2);
    assert!(script.parameters[0].mandatory && !script.parameters[1].mandatory);
    assert_eq!(script.parameters[0].type_name.as_deref(), Some("string"));
    let pipeline = read("(Get-X).InnerXml |\n  Out-File x.xml -Encoding UTF8 2>$null");
    assert_eq!(pipeline.statements.len(), 1);
}

#[test]
fn proper_powershell_outside_the_subset_is_named() {
    for (source, construct) in [
        ("switch ($x) { 1 { 2 } default { 3 } }", "switch"),
        ("class C { [int]$x }", "class"),
        ("enum E { A; B }", "enum"),
    ] {
        assert_eq!(first(source), StatementKind::Outside(construct), "{source}");
        assert_eq!(read(&format!("{source}\nGet-X")).statements.len(), 2, "{source}");
    }
    assert!(
        matches!(first("process"), StatementKind::Pipeline(_)),
        "a command of that name"
    );
    assert!(matches!(first("foreach-object { 1 }"), StatementKind::Pipeline(_)));
}

#[test]
fn what_is_wrong_is_shown_where_it_is() {
    let place = |source: &str| {
        let error = refused(source);
        let position = error.span.position(source);
        (position.line, position.column, error.incomplete)
    };
    assert_eq!(place("Foo\n  Bar )"), (2, 7, false));
    assert_eq!(place("Foo |"), (1, 5, true));
    assert_eq!(place("Foo | | Bar"), (1, 7, false));
    assert_eq!(place("Foo 'abc"), (1, 5, true));
    assert_eq!(place("Foo (Get-X"), (1, 5, true));
    assert_eq!(place("if ($x) {"), (1, 9, true));
    assert_eq!(place("ä é 'x' $x = ) 3").1, 14, "columns are characters");
    assert_eq!(place("Foo a && Bar"), (1, 7, false));
    assert_eq!(place("try { 1 }"), (1, 1, true));
    assert_eq!(place("try { 1 } Foo"), (1, 1, false));
}

#[test]
fn text_that_nests_without_end_is_refused() {
    for open in [
        "(", "@(", "$(", "{", "@{a=", "[int]", "-not ", "if (", "\"$(", "a (", "!", ",", "1+(", "-join ",
    ] {
        let error = refused(&open.repeat(20_000));
        assert!(
            error.message.starts_with("Nested more than") || error.incomplete,
            "{open}: {error}"
        );
    }
}

proptest::proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in r#"[ -~\n–“”é]{0,80}"#) {
        if let Err(error) = parse(&text) {
            proptest::prop_assert!(error.span.start <= text.len() && error.span.end <= text.len());
            proptest::prop_assert!(text.is_char_boundary(error.span.start));
        }
    }

    #[test]
    fn any_mixture_of_tokens_is_read_or_refused(
        tokens in proptest::collection::vec(proptest::sample::select(vec![
            "Get-X", " ", "-Name", "$a", "(", ")", "{", "}", "'s'", "\"$b\"", "|", ";", "\n", "@(", "@{", "=", ",", "..",
            ".", "[int]", "[", "]", "1", "-eq", "if", "foreach", "in", "try", "catch", ">", "2>&1", "@'\n", "\n'@", "`", "<x>",
        ]), 0..25)
    ) {
        let text = tokens.concat();
        if let Err(error) = parse(&text) {
            proptest::prop_assert!(error.span.end <= text.len());
        }
    }
}
