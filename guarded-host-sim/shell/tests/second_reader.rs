//! Holds the shell's reader against another one, tree-sitter's grammar of PowerShell: where that
//! grammar reads a line, both find the same commands with the same parameters.

use std::{fs, path::PathBuf};

use hgs_shell::syntax::{
    self,
    ast::{Argument, Command, Element, Expr, ExprKind, Part, Script, Statement, StatementKind},
};

/// A command's name and its parameters, as written.
type Found = Vec<(String, Vec<String>)>;

#[test]
fn both_readers_find_the_same_commands_and_parameters() {
    let mut lines: Vec<String> = SAMPLES.iter().map(|line| (*line).to_owned()).collect();
    match corpus() {
        Some(text) => lines.extend(text.lines().map(str::to_owned)),
        None => println!("skipped the lines of the corpus: cmdlet-lines.txt is not there"),
    }
    let mut parser = tree_sitter::Parser::new();
    parser.set_language(&tree_sitter_powershell::LANGUAGE.into()).unwrap();
    let mut compared = 0;
    for line in &lines {
        let tree = parser.parse(line, None).unwrap();
        // Placeholders are no PowerShell, and each reader takes them in its own way.
        if tree.root_node().has_error() || line.contains('<') {
            continue;
        }
        let mut theirs = Vec::new();
        walk(tree.root_node(), line, &mut theirs);
        let mut ours = Vec::new();
        let script = syntax::parse(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        in_script(&script, line, &mut ours);
        theirs.sort();
        ours.sort();
        assert_eq!(ours, theirs, "{line}");
        compared += 1;
    }
    assert!(
        compared * 10 >= lines.len() * 9,
        "{compared} of {} lines were compared",
        lines.len()
    );
}

fn corpus() -> Option<String> {
    let folder = std::env::var_os("LAB_CORPUS").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/corpus")),
        PathBuf::from,
    );
    fs::read_to_string(folder.join("cmdlet-lines.txt")).ok()
}

fn walk(node: tree_sitter::Node<'_>, line: &str, found: &mut Found) {
    let mut cursor = node.walk();
    if node.kind() == "command" {
        let text = |node: tree_sitter::Node<'_>| line[node.byte_range()].to_owned();
        let mut name = String::new();
        let mut parameters = Vec::new();
        for child in node.children(&mut cursor) {
            match child.kind() {
                "command_name" | "command_name_expr" => name = text(child),
                "command_elements" => {
                    let mut inner = child.walk();
                    let elements = child.children(&mut inner).filter(|c| c.kind() == "command_parameter");
                    parameters.extend(elements.map(|c| text(c).trim_start_matches('-').to_owned()));
                }
                _ => {}
            }
        }
        // That grammar takes `1..3` for the name of a command.
        if !name.starts_with(|c: char| c.is_ascii_digit()) {
            found.push((name, parameters));
        }
    }
    let mut cursor = node.walk();
    for child in node.children(&mut cursor) {
        walk(child, line, found);
    }
}

fn in_script(script: &Script, line: &str, found: &mut Found) {
    for statement in &script.statements {
        in_statement(statement, line, found);
    }
}

fn in_statement(statement: &Statement, line: &str, found: &mut Found) {
    match &statement.kind {
        StatementKind::Pipeline(pipeline) => {
            for element in &pipeline.elements {
                match element {
                    Element::Expression { expr, .. } => in_expr(expr, line, found),
                    Element::Command(command) => in_command(command, line, found),
                }
            }
        }
        StatementKind::Assign { target, value, .. } => {
            in_expr(target, line, found);
            in_statement(value, line, found);
        }
        StatementKind::If { clauses, otherwise } => {
            for (condition, body) in clauses {
                in_statement(condition, line, found);
                in_script(body, line, found);
            }
            otherwise.iter().for_each(|body| in_script(body, line, found));
        }
        StatementKind::Foreach { items, body, .. } => {
            in_statement(items, line, found);
            in_script(body, line, found);
        }
        StatementKind::Try { body, catches, finally } => {
            in_script(body, line, found);
            catches.iter().for_each(|catch| in_script(&catch.body, line, found));
            finally.iter().for_each(|body| in_script(body, line, found));
        }
        other => panic!("no sample has {other:?}"),
    }
}

fn in_command(command: &Command, line: &str, found: &mut Found) {
    let mut parameters = Vec::new();
    for argument in &command.arguments {
        match argument {
            Argument::Parameter { name, value, .. } => {
                parameters.push(name.clone());
                value.iter().for_each(|value| in_expr(value, line, found));
            }
            Argument::Value(value) => in_expr(value, line, found),
            Argument::Splat { .. } => {}
        }
    }
    found.push((command.name.span.text(line).to_owned(), parameters));
}

fn in_expr(expr: &Expr, line: &str, found: &mut Found) {
    match &expr.kind {
        ExprKind::Expandable(parts) => {
            for part in parts {
                if let Part::Sub(script) = part {
                    in_script(script, line, found);
                }
            }
        }
        ExprKind::List(items) => items.iter().for_each(|item| in_expr(item, line, found)),
        ExprKind::Sub(script) | ExprKind::Array(script) => in_script(script, line, found),
        ExprKind::Block(script) => in_script(script, line, found),
        ExprKind::Hashtable(entries) => entries.iter().for_each(|(_, value)| in_statement(value, line, found)),
        ExprKind::Paren(statement) => in_statement(statement, line, found),
        ExprKind::Member { object, .. } => in_expr(object, line, found),
        ExprKind::Call { object, arguments, .. } => {
            in_expr(object, line, found);
            arguments.iter().for_each(|argument| in_expr(argument, line, found));
        }
        ExprKind::Index { object, index } => {
            in_expr(object, line, found);
            in_expr(index, line, found);
        }
        ExprKind::Unary(_, operand) | ExprKind::Cast(_, operand) | ExprKind::Step { target: operand, .. } => {
            in_expr(operand, line, found);
        }
        ExprKind::Binary { left, right, .. } => {
            in_expr(left, line, found);
            in_expr(right, line, found);
        }
        _ => {}
    }
}

const SAMPLES: [&str; 24] = [
    "$r = 1..3",
    "foreach ($i in Get-VM -Name a*) { Start-VM $i -Passthru }",
    "if (-not (Test-Path $x -PathType Leaf)) { New-Item $x -Force } else { Get-Item -Path $x }",
    "try { Start-VM a -ErrorAction Stop } catch { Write-Host $_ } finally { Get-VM -Name b }",
    "Get-VM | Where-Object { $_.State -eq 'Running' -and -not $_.Off } | Select-Object -First 1 Name, State",
    "$x | ? Name -eq 'y'",
    "$p = ConvertTo-SecureString -AsPlainText 'x' -Force",
    "Set-HgsServer -Http:$false -Https",
    "Foo (1),(2) -A $a, $b",
    "Foo $x.Y.Z -B",
    "Foo \"$(Get-X -Y 1) and $env:TEMP\" -Skip",
    "(Get-X -A 1).Save(\"$path\\$name-EK.xml\")",
    "$h = @{ A = Get-X -B 2; C = 'd' }",
    "Foo @more -Last",
    "Invoke-Command -ComputerName h1, h2 -ScriptBlock { Get-X -Y } -ArgumentList 1",
    "[xml](Get-Content -Path x.xml)",
    "Get-X -Name 'it''s' -Other \"say \"\"x\"\"\"",
    "Get-X 2>$null",
    "Get-X; Get-Y -Z 1",
    "$null = Get-X -Y",
    "& $command -A 1",
    "Get-X -Path C:\\a\\b.xml -Uri http://a/b",
    "@(Get-X -Y).Count",
    "$a = if ($x) { Get-X -Y } else { Get-Z }",
];
