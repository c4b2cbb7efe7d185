package writer

import (
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// bar shows progress on a terminal and nothing elsewhere. A nil bar does nothing.
type bar struct{ p *progressbar.ProgressBar }

func newBar(out io.Writer, o *options) *bar {
	file, ok := out.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) || o.body != nil {
		return nil
	}
	if o.ids && term.IsTerminal(int(os.Stdout.Fd())) {
		return nil // it would be drawn between the ids
	}
	return &bar{progressbar.NewOptions64(max(o.bytes, -1),
		progressbar.OptionSetWriter(out),
		progressbar.OptionShowBytes(true),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionSetDescription("committed"),
		progressbar.OptionClearOnFinish(),
	)}
}

func (b *bar) add(bytes int64) {
	if b != nil {
		_ = b.p.Add64(bytes) // a bar that cannot be drawn is no reason to stop
	}
}

func (b *bar) close() {
	if b != nil {
		_ = b.p.Exit()
	}
}
