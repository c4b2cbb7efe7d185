package admin

import (
	"github.com/urfave/cli/v2"

	"github.com/mvalve/mvalve/cmd/internal/setup"
)

const bashCompletion = `_mvalve_complete() {
  local cur="${COMP_WORDS[COMP_CWORD]}" words=("${COMP_WORDS[@]:0:COMP_CWORD}")
  [[ "$cur" == -* ]] && words+=("$cur")
  COMPREPLY=($(compgen -W "$("${words[@]}" --generate-bash-completion 2>/dev/null)" -- "$cur"))
}
complete -o bashdefault -o default -F _mvalve_complete mvalve mvalve-writer mvalve-reader
`

const zshCompletion = `autoload -U +X compinit && compinit
autoload -U +X bashcompinit && bashcompinit
` + bashCompletion

const fishCompletion = `function __mvalve_complete
  set -l words (commandline -opc)
  string match -q -- '-*' (commandline -ct); and set -a words (commandline -ct)
  $words --generate-bash-completion 2>/dev/null
end
for name in mvalve mvalve-writer mvalve-reader
  complete -c $name -a '(__mvalve_complete)'
end
`

func completionCommand() *cli.Command {
	scripts := map[string]string{"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion}
	return &cli.Command{
		Name: "completion", Usage: "print the completion script of a shell: bash, zsh or fish", ArgsUsage: "SHELL",
		Description: "For bash: source <(mvalve completion bash)",
		Action: func(c *cli.Context) error {
			if err := arguments(c, "SHELL"); err != nil {
				return err
			}
			script, ok := scripts[c.Args().First()]
			if !ok {
				return setup.Usagef("SHELL %q: use bash, zsh or fish", c.Args().First())
			}
			_, err := c.App.Writer.Write([]byte(script))
			return err
		},
	}
}
