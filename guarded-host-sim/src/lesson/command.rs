//! The command line of lessons: a shell with the words `task`, `hint`, `check` and `quit` besides.

use std::{
    fs,
    io::{self, BufRead, Write},
    path::PathBuf,
    process::ExitCode,
    thread,
};

use anyhow::anyhow;
use clap::Args;
use hgs_shell::console::Standard;

use super::{Course, Grade, lesson, lessons};
use crate::{machine::user::let_others_pass, swtpm::short_private_dir};

/// A guided lesson; without a name, the list of them.
#[derive(Args)]
pub struct LessonArgs {
    /// The lesson, by name or number
    name: Option<String>,
    /// Carries out a script in place of what is typed, checks and grades; the exit code is 1 if the lesson is not passed
    #[arg(long, value_name = "FILE", requires = "name")]
    file: Option<PathBuf>,
}

/// Carries it out.
pub fn run(args: LessonArgs) -> anyhow::Result<ExitCode> {
    let Some(name) = args.name.clone() else { return list() };
    // Blocks that call each other need room.
    let course = thread::Builder::new().name("lesson".to_owned()).stack_size(64 << 20);
    let course = course.spawn(move || teach(&name, args.file.as_deref()))?;
    course.join().map_err(|_| anyhow!("the lesson's thread panicked"))?
}

fn list() -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    for lesson in lessons()? {
        writeln!(out, "{:2}  {:24} {}", lesson.number, lesson.name, lesson.title)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn teach(name: &str, script: Option<&std::path::Path>) -> anyhow::Result<ExitCode> {
    let lesson = lesson(name)?;
    let folder = short_private_dir()?;
    let_others_pass(&folder)?;
    let result = (|| {
        say(&format!("{}. {}\n\nThe fabric starts …", lesson.number, lesson.title))?;
        let mut course = Course::begin(lesson, &folder)?;
        let grade = match script {
            Some(path) => {
                let text = fs::read_to_string(path)?;
                let mut session = course.session(Box::new(Standard))?;
                session.run_file(&path.display().to_string(), &text, &[]);
                course.count_step();
                course.grade()
            }
            None => converse(&mut course)?,
        };
        say(&report(&grade))?;
        anyhow::Ok(if grade.passed {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    })();
    let _ = fs::remove_dir_all(&folder);
    result
}

fn converse(course: &mut Course) -> anyhow::Result<Grade> {
    say(&task(course))?;
    let mut session = course.session(Box::new(Standard))?;
    let mut lines = io::stdin().lock().lines();
    loop {
        let mut out = io::stdout();
        write!(out, "{}", session.prompt())?;
        out.flush()?;
        let Some(line) = lines.next() else {
            return Ok(course.grade());
        };
        let line = line?;
        match line.trim().to_ascii_lowercase().as_str() {
            "" => {}
            "task" => say(&task(course))?,
            "hint" => {
                let hint = course.hint().to_owned();
                say(&hint)?;
            }
            "check" => {
                let grade = course.grade();
                if grade.passed {
                    return Ok(grade);
                }
                say(&report(&grade))?;
            }
            "quit" => return Ok(course.grade()),
            _ => {
                course.count_step();
                session.run(&line);
            }
        }
    }
}

fn task(course: &Course) -> String {
    let lesson = course.lesson();
    format!(
        "\n{}\n\nTeaches: {}\nThe machines: WS01, {}, {}, VMM01 (Enter-PSSession NAME moves there, Exit-PSSession back).\n\
         Words of the lesson: task, hint, check, quit.\n",
        lesson.task.trim(),
        lesson.teaches,
        (1..=lesson.nodes)
            .map(|number| format!("HGS{number:02}"))
            .collect::<Vec<_>>()
            .join(", "),
        lesson.hosts.join(", "),
    )
}

/// What holds and what not, and the grade.
pub fn report(grade: &Grade) -> String {
    let mut text = String::from("\n");
    for (check, met) in &grade.checks {
        text.push_str(&format!("  [{}] {check}\n", if *met { "x" } else { " " }));
    }
    let outcome = match grade.passed {
        true => format!("Passed with {} points", grade.points),
        false => "Not passed yet".to_owned(),
    };
    text + &format!(
        "{outcome}: {} lines, {} hints, {} minutes.\n",
        grade.steps, grade.hints, grade.minutes
    )
}

fn say(text: &str) -> io::Result<()> {
    writeln!(io::stdout(), "{text}")
}
