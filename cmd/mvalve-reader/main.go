// Command mvalve-reader takes messages out of a pipe; see mvalve-reader --help.
package main

import (
	"github.com/mvalve/mvalve/cmd/internal/reader"
	"github.com/mvalve/mvalve/cmd/internal/setup"
)

func main() { setup.Main(reader.App()) }
