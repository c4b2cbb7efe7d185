package reader

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/mvalve/mvalve/cmd/internal/jsonline"
	"github.com/mvalve/mvalve/cmd/internal/setup"
	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/valve"
)

// maxAnswer bounds a line of verdict in bytes.
const maxAnswer = 1 << 20

// piper talks to one command: messages go in, verdicts come out, in any order.
type piper struct {
	timeout time.Duration
	log     *slog.Logger
	cmd     *exec.Cmd
	kill    context.CancelFunc
	stop    context.CancelCauseFunc

	writing sync.Mutex
	in      io.WriteCloser

	mu      sync.Mutex
	waiting map[queue.ID]chan verdict // capacity 1
	closing bool

	ended chan struct{} // closed when the command has ended
	err   error         // why, set before
}

func startPiper(ctx context.Context, j *job) (*piper, error) {
	running, kill := context.WithCancel(context.WithoutCancel(ctx))
	p := &piper{
		timeout: j.o.timeout, log: j.pipe.Log, kill: kill, stop: j.stop,
		waiting: make(map[queue.ID]chan verdict), ended: make(chan struct{}),
	}
	p.cmd = newCommand(running, j.o.command)
	p.cmd.Stderr = os.Stderr
	out, err := p.cmd.StdoutPipe()
	if err == nil {
		p.in, err = p.cmd.StdinPipe()
	}
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		kill()
		return nil, fmt.Errorf("--pipe: %w", err)
	}
	go p.listen(out)
	return p, nil
}

// listen hands out the verdicts until the command ends.
func (p *piper) listen(out io.Reader) {
	answers := bufio.NewScanner(out)
	answers.Buffer(make([]byte, 4096), maxAnswer)
	for answers.Scan() {
		if err := p.answer(answers.Bytes()); err != nil {
			p.stop(setup.Failf(setup.ExitData, "--pipe: %w", err))
			p.kill() // what it has not answered is tried again
		}
	}
	if err := answers.Err(); err != nil {
		p.stop(setup.Failf(setup.ExitData, "--pipe: read a verdict: %w", err))
		p.kill()
	}
	p.err = p.cmd.Wait()
	close(p.ended)
	p.mu.Lock()
	early := !p.closing
	p.mu.Unlock()
	if early {
		state := "exit status 0"
		if p.err != nil {
			state = p.err.Error()
		}
		p.stop(setup.Failf(setup.ExitOutput, "the command of --pipe ended by itself: %s", state))
	}
}

func (p *piper) answer(line []byte) error {
	var a struct {
		ID      queue.ID
		Verdict string
		Delay   string
		Reason  string
	}
	if err := json.Unmarshal(line, &a); err != nil {
		return fmt.Errorf(`%.80q is not a verdict such as {"id":"...","verdict":"ack"}`, line)
	}
	v := verdict{delay: -1, reason: a.Reason}
	switch a.Verdict {
	case "ack":
		v.end = ack
	case "retry":
		v.end = retry
	case "throttled":
		v.end, v.delay = throttled, 0
	case "dead":
		v.end = dead
	default:
		return fmt.Errorf("verdict %.40q; use ack, retry, throttled or dead", a.Verdict)
	}
	if a.Delay != "" {
		delay, err := time.ParseDuration(a.Delay)
		if err != nil || delay < 0 {
			return fmt.Errorf("delay %.40q in a verdict; use a duration such as 3s", a.Delay)
		}
		v.delay = delay
	}
	if v.end == throttled && v.delay == 0 {
		return fmt.Errorf(`a verdict of throttled needs a delay, such as "delay":"3s"`)
	}
	p.mu.Lock()
	answered := p.waiting[a.ID]
	delete(p.waiting, a.ID)
	p.mu.Unlock()
	if answered == nil {
		p.log.Warn("verdict for a message that is not under way", "message_id", a.ID)
		return nil
	}
	answered <- v
	return nil
}

func (p *piper) consume(ctx context.Context, d *valve.Delivery) verdict {
	answered := make(chan verdict, 1)
	p.mu.Lock()
	p.waiting[d.Message.ID] = answered
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.waiting, d.Message.ID)
		p.mu.Unlock()
	}()
	// A command that does not read must not hold everything up for ever.
	defer context.AfterFunc(ctx, p.kill)()
	if err := p.write(d); err != nil {
		return verdict{end: release, stop: setup.Failf(setup.ExitOutput, "write to the command of --pipe: %w", err)}
	}
	timer := time.NewTimer(p.timeout)
	defer timer.Stop()
	select {
	case v := <-answered:
		return v
	case <-timer.C:
		return verdict{end: retry, delay: -1, reason: fmt.Sprintf("no verdict within %v", p.timeout)}
	case <-p.ended:
		return verdict{end: retry, delay: -1, reason: "the command of --pipe ended"}
	case <-ctx.Done():
		return verdict{end: release}
	}
}

func (p *piper) write(d *valve.Delivery) error {
	p.writing.Lock()
	defer p.writing.Unlock()
	defer time.AfterFunc(p.timeout, p.kill).Stop()
	_, err := p.in.Write(jsonline.Append(nil, d.Message, d.Attempt, d.DispatchedAt))
	return err
}

// close tells the command that nothing more comes and waits until it ends.
func (p *piper) close(ctx context.Context) error {
	p.mu.Lock()
	p.closing = true
	p.mu.Unlock()
	_ = p.in.Close()
	select {
	case <-p.ended:
	case <-ctx.Done():
		p.kill()
		<-p.ended
	}
	p.kill()
	return nil
}
