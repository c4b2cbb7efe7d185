package reader

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/mvalve/mvalve/cmd/internal/jsonline"
	"github.com/mvalve/mvalve/cmd/internal/setup"
	"github.com/mvalve/mvalve/valve"
)

// maxHeadersFact bounds MVALVE_MESSAGE_HEADERS in bytes: the systems refuse to
// start a command with a variable of more than 128 KiB.
const maxHeadersFact = 100 << 10

// executor starts a command per message.
type executor struct {
	command []string
	timeout time.Duration
	log     *slog.Logger
}

func (x *executor) consume(ctx context.Context, d *valve.Delivery) verdict {
	if strings.ContainsRune(d.Message.Destination, 0) {
		return verdict{end: dead, reason: "the destination has a NUL byte, which no variable can hold"}
	}
	running, cancel := context.WithTimeout(ctx, x.timeout)
	defer cancel()
	cmd := newCommand(running, x.command)
	cmd.Env = append(cmd.Env, x.facts(d)...)
	cmd.Stdin = bytes.NewReader(d.Message.Body)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return verdict{end: ack}
	case ctx.Err() != nil:
		return verdict{end: release}
	case running.Err() != nil:
		return verdict{end: retry, delay: -1, reason: fmt.Sprintf("%s did not end within %v", x.command[0], x.timeout)}
	case errors.As(err, &exit) && exit.ExitCode() == setup.ExitData:
		return verdict{end: dead, reason: fmt.Sprintf("%s: %v", x.command[0], err)}
	}
	return verdict{end: retry, delay: -1, reason: fmt.Sprintf("%s: %v", x.command[0], err)}
}

// newCommand prepares a command in a process group of its own, so that a signal
// meant for the reader does not reach it, and without the URLs of the pipe, which
// may hold a password. The end of ctx ends the whole group.
func newCommand(ctx context.Context, command []string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.WaitDelay = time.Second
	ownGroup(cmd)
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); name != setup.EnvName("queue") && name != setup.EnvName("state") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	return cmd
}

func (x *executor) facts(d *valve.Delivery) []string {
	m := d.Message
	facts := []string{
		"MVALVE_MESSAGE_ID=" + m.ID.String(),
		"MVALVE_MESSAGE_DESTINATION=" + m.Destination,
		"MVALVE_MESSAGE_LANE=" + m.Lane.String(),
		"MVALVE_MESSAGE_PRIORITY=" + strconv.Itoa(m.Priority.Level()),
		"MVALVE_MESSAGE_ATTEMPT=" + strconv.Itoa(d.Attempt),
		"MVALVE_MESSAGE_ENQUEUED_AT=" + jsonline.FormatTime(m.EnqueuedAt),
		"MVALVE_MESSAGE_DISPATCHED_AT=" + jsonline.FormatTime(d.DispatchedAt),
		"MVALVE_MESSAGE_EXPIRES_AT=" + jsonline.FormatTime(m.ExpiresAt),
		// The end of its standard input tells a command nothing: it comes early
		// when the reader is killed.
		"MVALVE_MESSAGE_BYTES=" + strconv.Itoa(len(m.Body)),
	}
	pairs := jsonline.Pairs(m.Headers)
	headers, err := json.Marshal(pairs)
	if err != nil || len(headers) > maxHeadersFact {
		x.log.Warn("headers not passed on: too long for a variable", "message_id", m.ID, "bytes", len(headers))
		return facts
	}
	return append(facts, "MVALVE_MESSAGE_HEADERS="+string(headers))
}

func (x *executor) close(context.Context) error { return nil }
