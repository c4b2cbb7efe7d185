package demo

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"
)

// view shows how far the messages are; accounts are in the order of the targets.
type view interface {
	update(elapsed time.Duration, accounts []account)
	close()
}

// newView returns bars on a terminal, and a line a second elsewhere, on a tiny
// one, and when others write there too.
func newView(out io.Writer, targets []*target, plain bool) view {
	file, ok := out.(*os.File)
	if plain || !ok || os.Getenv("TERM") == "dumb" {
		return &lines{out: out, targets: targets}
	}
	// Rows that scroll away cannot be drawn again. An error: no terminal.
	columns, rows, err := term.GetSize(int(file.Fd()))
	if err != nil || columns < roomForBars || rows < len(targets)+2 {
		return &lines{out: out, targets: targets}
	}
	return newBars(file, targets)
}

// Narrower terminals than these, in columns, show less beside the bars.
const (
	roomForAll   = 76
	roomForRates = 48
	roomForBars  = 16
)

// bars are one live bar per destination.
type bars struct {
	progress *mpb.Progress
	bars     []*mpb.Bar
	latest   []atomic.Pointer[account]
}

func newBars(out *os.File, targets []*target) *bars {
	b := &bars{
		progress: mpb.New(mpb.WithOutput(out), mpb.WithRefreshRate(refresh)),
		latest:   make([]atomic.Pointer[account], len(targets)),
	}
	for i, t := range targets {
		b.latest[i].Store(&account{})
		columns := func() int {
			width, _, err := term.GetSize(int(out.Fd()))
			if err != nil {
				return roomForAll
			}
			return width
		}
		b.bars = append(b.bars, b.progress.New(int64(t.total()), mpb.BarStyle(),
			mpb.PrependDecorators(decor.Any(func(decor.Statistics) string { return label(t, columns()) }, decor.WCSyncSpaceR)),
			mpb.AppendDecorators(decor.Any(func(decor.Statistics) string { return count(t, *b.latest[i].Load(), columns()) }, decor.WCSyncSpace)),
		))
	}
	return b
}

// label is what stands before the bar.
func label(t *target, columns int) string {
	if columns < roomForAll {
		return t.name
	}
	return t.name + " " + t.short()
}

// count is what stands behind the bar.
func count(t *target, a account, columns int) string {
	text := fmt.Sprintf("%d/%d", a.messages, t.total())
	if columns >= roomForRates {
		text += fmt.Sprintf(" %3d in %-5v", a.recent, t.limit.Interval)
	}
	if columns >= roomForAll {
		text += fmt.Sprintf(" %d above", a.report.Above)
	}
	return text
}

func (b *bars) update(_ time.Duration, accounts []account) {
	for i := range accounts {
		b.latest[i].Store(&accounts[i])
		b.bars[i].SetCurrent(int64(accounts[i].messages))
	}
}

func (b *bars) close() {
	for _, bar := range b.bars {
		bar.Abort(false) // without effect on one that is full
	}
	b.progress.Wait()
}

// lines write a line a second.
type lines struct {
	out     io.Writer
	targets []*target
	seconds int
}

func (l *lines) update(elapsed time.Duration, accounts []account) {
	if int(elapsed/time.Second) <= l.seconds {
		return
	}
	l.seconds = int(elapsed / time.Second)
	above := 0
	parts := make([]string, len(accounts))
	for i, a := range accounts {
		parts[i] = fmt.Sprintf("%s %d/%d", l.targets[i].name, a.messages, l.targets[i].total())
		above += a.report.Above
	}
	fmt.Fprintf(l.out, "%s: %2d s: %s; %d windows above\n", title, l.seconds, strings.Join(parts, ", "), above)
}

func (l *lines) close() {}
