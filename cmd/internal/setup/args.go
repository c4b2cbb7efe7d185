package setup

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

const completionFlag = "--generate-bash-completion"

// Arrange moves flags before the arguments that are none, and names of
// subcommands before both, so that a flag means the same wherever it stands: the
// standard parser stops at the first argument and would take a flag behind it
// for a file. What follows "--" is never a flag. args[0] is the program.
func Arrange(app *cli.App, args []string) []string {
	takesValue := make(map[string]bool)
	collectFlags(takesValue, app.Flags, app.Commands)

	var flags, plain, last []string
	if n := len(args); n > 1 && args[n-1] == completionFlag {
		args, last = args[:n-1], []string{completionFlag}
	}
	for i := 1; i < len(args); i++ {
		arg := args[i]
		name, _, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		switch {
		case arg == "--":
			plain = append(plain, args[i+1:]...)
			i = len(args)
		case !isFlag(arg):
			plain = append(plain, arg)
		case takesValue[name] && !hasValue && i+1 < len(args):
			flags = append(flags, arg, args[i+1])
			i++
		default:
			flags = append(flags, arg)
		}
	}
	path := commandPath(app.Commands, plain)
	out := slices.Concat(args[:1], plain[:path], flags)
	if len(plain) > path {
		if last == nil {
			out = append(out, "--") // completion would take it for the word to complete
		}
		out = append(out, plain[path:]...)
	}
	return append(out, last...)
}

// isFlag tells -x and --x from "-", which means standard input, and from -1/s,
// which is a bad limit and should be called that.
func isFlag(arg string) bool {
	return len(arg) > 1 && arg[0] == '-' && (arg[1] < '0' || arg[1] > '9')
}

func collectFlags(takesValue map[string]bool, flags []cli.Flag, commands []*cli.Command) {
	for _, f := range flags {
		if _, isBool := f.(*cli.BoolFlag); isBool {
			continue
		}
		for _, name := range f.Names() {
			takesValue[name] = true
		}
	}
	for _, c := range commands {
		collectFlags(takesValue, c.Flags, c.Subcommands)
	}
}

// commandPath returns how many of the first words name a command and its subcommands.
func commandPath(commands []*cli.Command, words []string) int {
	for n, word := range words {
		at := slices.IndexFunc(commands, func(c *cli.Command) bool { return c.HasName(word) })
		if at < 0 {
			return n
		}
		commands = commands[at].Subcommands
	}
	return len(words)
}

// Strict prepares app and its commands: every flag can be given as a variable,
// usage errors are one line and exit with 2, slices are not split at commas.
func Strict(app *cli.App) {
	app.DisableSliceFlagSeparator = true
	app.EnableBashCompletion = true
	app.HideHelpCommand = true
	app.ExitErrHandler = func(*cli.Context, error) {} // Run ends the process
	app.OnUsageError = usageError
	withEnv(app.Flags)
	strictCommands(app.Commands)
}

func strictCommands(commands []*cli.Command) {
	for _, c := range commands {
		c.OnUsageError = usageError
		c.HideHelpCommand = true
		withEnv(c.Flags)
		strictCommands(c.Subcommands)
		if len(c.Subcommands) > 0 && c.Action == nil {
			c.Action = onlySubcommands
		}
	}
}

func usageError(c *cli.Context, err error, _ bool) error {
	return Usagef("%w; see %s --help", err, strings.TrimSpace(c.App.Name+" "+commandName(c)))
}

func commandName(c *cli.Context) string {
	if c.Command == nil || c.Command.Name == c.App.Name {
		return ""
	}
	return c.Command.Name
}

func onlySubcommands(c *cli.Context) error {
	if c.Args().Present() {
		return Usagef("unknown command %q; see %s --help", c.Command.Name+" "+c.Args().First(), c.App.Name)
	}
	return cli.ShowSubcommandHelp(c)
}

// EnvName returns the variable that stands for a flag: MVALVE_MAX_ATTEMPTS for
// --max-attempts.
func EnvName(flag string) string {
	return "MVALVE_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

func withEnv(flags []cli.Flag) {
	for _, f := range flags {
		env := []string{EnvName(f.Names()[0])}
		switch f := f.(type) {
		case *cli.StringFlag:
			f.EnvVars = env
		case *cli.BoolFlag:
			f.EnvVars = env
		case *cli.IntFlag:
			f.EnvVars = env
		case *cli.DurationFlag:
			f.EnvVars = env
		case *cli.StringSliceFlag:
			f.EnvVars = env
		default:
			panic(fmt.Sprintf("flag %s of type %T has no variable", f.Names()[0], f))
		}
	}
}
