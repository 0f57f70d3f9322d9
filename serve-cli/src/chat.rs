//! `wootz chat`.
mod command;
pub mod editor;
mod session;

use crate::device::{DeviceArgs, EmulationNote};
use crate::model::{self, LimitArgs, ModelArgs, SamplingArgs};
use crate::terminal::{Terminal, one_line};
use anyhow::{Context, Result, ensure};
use clap::Args;
use command::Line;
use editor::{Prompt, Typed};
use session::{Outcome, Session};
use std::io::{self, BufRead, Write};
use std::process::ExitCode;

/// Arguments of `wootz chat`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    wootz chat                                             talk; /help, /reset, /system, /stats, /quit\n  \
    wootz chat --ask \"What is 12 plus 7?\"                  one answer on stdout and nothing else\n  \
    wootz chat ./Llama-3.1-8B-Instruct --device cuda:1     a Hugging Face model directory\n  \
    wootz chat --draft-model tiny-draft                    a smaller model drafts, the answers stay the same\n  \
    wootz chat ./Qwen2.5-7B-Instruct --max-model-len 32K --system \"Answer in French.\"\n  \
    printf 'Spell cat.\\nNow reverse it.\\n' | wootz chat      each line is a turn\n\n\
    Ctrl-C stops an answer, Ctrl-D leaves. A line that ends in \\ goes on in the next one.\n\
    The model's own sampling settings hold unless flags change them; --ask is greedy unless a\n\
    sampling flag is given.")]
pub struct ChatArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Answer this and leave
    #[arg(long, value_name = "TEXT")]
    ask: Option<String>,
    /// The system prompt
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    limits: LimitArgs,
}

/// Runs the command.
pub fn run(args: &ChatArgs, terminal: &Terminal) -> Result<ExitCode> {
    args.sampling.validate()?;
    ensure!(args.ask.as_ref().is_none_or(|text| !text.trim().is_empty()), "--ask is empty: say what to answer");
    let source = args.model.source()?;
    let limits = LimitArgs { one_conversation: true, ..args.limits.clone() };
    let llm = model::load(&source, &args.device, &limits, terminal)?;
    let _note = EmulationNote::new(llm.engine().runner().device());
    let params = match &args.ask {
        Some(_) => args.sampling.greedy_unless_asked(llm.generation_config()),
        None => args.sampling.recommended(llm.generation_config()),
    };
    let mut session = Session::new(llm, params, args.system.clone(), terminal)?;
    if let Some(text) = &args.ask {
        let outcome = session.answer(text)?;
        cut_note(outcome)?;
        if let Some(line) = session.speculation().filter(|_| args.limits.verbose) {
            writeln!(io::stderr(), "{line}")?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    if terminal.stdin { talk(&mut session, terminal) } else { turns(&mut session) }
}

/// Says on stderr that an answer is not whole: stdout shows none of that.
fn cut_note(outcome: Outcome) -> io::Result<()> {
    let why = match outcome {
        Outcome::Cut => "--max-tokens; raise it for more",
        Outcome::ContextFull => "the context's end; raise --max-model-len if the model allows",
        Outcome::Done | Outcome::Stopped => return Ok(()),
    };
    writeln!(io::stderr(), "note: the answer was cut off by {why}")
}

/// A person at a terminal.
fn talk(session: &mut Session, terminal: &Terminal) -> Result<ExitCode> {
    let mut prompt = Prompt::new(terminal)?;
    session.stop_on_ctrl_c()?;
    say(&terminal.dim(&format!("{} · /help", session.describe())))?;
    loop {
        let line = match prompt.read()? {
            Typed::Line(line) => editor::unfold(&line),
            Typed::Cancelled => {
                say(&terminal.dim("(Ctrl-D or /quit leaves)"))?;
                continue;
            }
            Typed::End => return Ok(ExitCode::SUCCESS),
        };
        let outcome = match Line::parse(&line) {
            Line::Message(text) => session.answer(text),
            Line::Quit => return Ok(ExitCode::SUCCESS),
            command => {
                slash(command, session, terminal)?;
                continue;
            }
        };
        match outcome {
            Ok(outcome) => {
                say(&terminal.dim(&session.last_line(outcome)))?;
                if outcome == Outcome::ContextFull {
                    say(&terminal.paint("33", &session.context_full()))?;
                }
            }
            Err(error) => mend(&error, terminal).map_or(Err(error), |advice| say(&advice))?,
        }
    }
}

/// Lines from a pipe or file: answers on stdout, one after another; an answer that fails does not end the rest.
fn turns(session: &mut Session) -> Result<ExitCode> {
    let plain = Terminal { stdin: false, stdout: false, stderr: false, colour: false };
    let mut code = ExitCode::SUCCESS;
    for line in io::stdin().lock().split(b'\n') {
        let line = line.context("cannot read stdin")?;
        let line = String::from_utf8_lossy(&line);
        match Line::parse(&line) {
            Line::Message(text) => {
                let outcome = session.answer(text);
                if let Ok(outcome) = outcome {
                    cut_note(outcome)?;
                }
                if let Err(error) = outcome {
                    let Some(advice) = mend(&error, &plain) else { return Err(error) };
                    let _ = writeln!(io::stderr(), "error: {advice}");
                    code = ExitCode::FAILURE;
                }
            }
            Line::Quit => break,
            command => slash(command, session, &plain)?,
        }
    }
    Ok(code)
}

fn slash(command: Line<'_>, session: &mut Session, terminal: &Terminal) -> Result<()> {
    match command {
        Line::Help => {
            for (usage, what) in command::COMMANDS {
                say(&format!("{}  {what}", terminal.bold(&format!("{usage:14}"))))?;
            }
            say(&terminal.dim("Ctrl-C stops an answer, Ctrl-D leaves; a line that ends in \\ goes on"))
        }
        Line::Reset => {
            session.reset();
            say(&terminal.dim("(the conversation is forgotten)"))
        }
        Line::ShowSystem => say(&match session.system() {
            Some(text) => text.to_owned(),
            None => terminal.dim("(no system prompt; /system TEXT sets one)"),
        }),
        Line::ClearSystem => {
            session.set_system(None);
            say(&terminal.dim("(the system prompt is removed)"))
        }
        Line::SetSystem(text) => {
            session.set_system(Some(text.to_owned()));
            say(&terminal.dim("(the system prompt is set; the conversation goes on)"))
        }
        Line::Stats => say(&session.stats()),
        Line::Unknown(name) => say(&terminal.paint("33", &command::unknown(name))),
        Line::Empty | Line::Message(_) | Line::Quit => Ok(()),
    }
}

/// What to tell about an error after which the chat can go on; `None` for the others.
fn mend(error: &anyhow::Error, terminal: &Terminal) -> Option<String> {
    use engine::Error as E;
    let advice = match error.downcast_ref::<E>()? {
        E::PromptTooLong { tokens, max } => {
            format!("the conversation has {tokens} tokens and the context holds {max}: /reset starts a new one")
        }
        error @ (E::Template { .. } | E::TemplateRefused { .. } | E::Request { .. }) => one_line(&error.to_string()),
        _ => return None,
    };
    Some(terminal.paint("33", &advice))
}

fn say(text: &str) -> Result<()> {
    let mut out = io::stdout();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}
