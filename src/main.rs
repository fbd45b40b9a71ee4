//! The binary: nothing but the door to the command line.

fn main() -> std::process::ExitCode {
    tidemark::cli::main()
}
