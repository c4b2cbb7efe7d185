// Command mvalve-writer writes messages into a pipe; see mvalve-writer --help.
package main

import (
	"github.com/mvalve/mvalve/cmd/internal/setup"
	"github.com/mvalve/mvalve/cmd/internal/writer"
)

func main() { setup.Main(writer.App()) }
