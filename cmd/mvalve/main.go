// Command mvalve administrates a pipe; see mvalve --help.
package main

import (
	"github.com/mvalve/mvalve/cmd/internal/admin"
	"github.com/mvalve/mvalve/cmd/internal/bench"
	"github.com/mvalve/mvalve/cmd/internal/demo"
	"github.com/mvalve/mvalve/cmd/internal/serve"
	"github.com/mvalve/mvalve/cmd/internal/setup"
)

// Subcommands that bring much of their own are packages beside admin and are
// passed to App here.
func main() { setup.Main(admin.App(demo.Command(), bench.Command(), serve.Command())) }
