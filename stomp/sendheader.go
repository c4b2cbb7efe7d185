package stomp

import (
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/stomp/frame"
)

// headerDestination names another queue than the destination header does.
const headerDestination = "X-Mvalve-Destination"

// maxDelay bounds what a header can ask for.
const maxDelay = 366 * 24 * time.Hour

// sendOptions collects what the headers of a SEND ask for. The first of several
// of one name counts (S38); of the names for a delay, AMQ_SCHEDULED_DELAY goes
// before AMQ_SCHEDULED_TIME, x-delay and deliver-after.
type sendOptions struct {
	c                                  *conn
	m                                  *queue.Message
	priority, expires, expiration      string
	scheduled, at, delay, deliverAfter string
}

// header takes one header of a SEND and reports whether it travels with the
// message. It may change the value.
func (o *sendOptions) header(h *frame.Field) (keep bool, err error) {
	first := func(s *string) {
		if *s == "" {
			*s = string(h.Value)
		}
	}
	switch string(h.Name) {
	case "destination", "receipt", "transaction", "content-length":
		return false, nil // about this frame only
	case "message-id", "subscription", "ack", "redelivered", "x-delivery-count", "receipt-id":
		return false, nil // the server's own on a MESSAGE (S71)
	case "priority":
		first(&o.priority)
	case "expires":
		first(&o.expires)
	case "expiration":
		first(&o.expiration)
	case "AMQ_SCHEDULED_DELAY":
		first(&o.scheduled)
	case "AMQ_SCHEDULED_TIME":
		first(&o.at)
	case "x-delay":
		first(&o.delay)
	case "deliver-after":
		first(&o.deliverAfter)
	case "AMQ_SCHEDULED_PERIOD", "AMQ_SCHEDULED_REPEAT", "AMQ_SCHEDULED_CRON":
		return false, refuse("unsupported header", "%s: messages are not repeated; send each one, with AMQ_SCHEDULED_DELAY or AMQ_SCHEDULED_TIME", h.Name)
	case headerDestination, "x-mvalve-destination":
		o.m.Destination = string(h.Value)
	case "ack-timeout":
		if _, err := seconds("ack-timeout", string(h.Value)); err != nil {
			return false, err
		}
	case "reply-to":
		if kind, name := parseDestination(h.Value); kind == tempQueue {
			global, err := o.c.replyQueue(string(name))
			if err != nil {
				return false, err
			}
			h.Value = []byte("/queue/" + global)
		}
	}
	return true, nil
}

// apply sets the fields of the message.
func (o *sendOptions) apply() error {
	m := o.m
	if o.priority != "" {
		n, err := strconv.Atoi(o.priority)
		if err != nil || n < 0 {
			return refuse("bad priority", "priority %.20q; use 0 (last) to 9 (first)", o.priority)
		}
		m.Priority = queue.Level(min(n, 9))
	}
	if err := o.applyDelay(); err != nil {
		return err
	}
	switch {
	case o.expires != "":
		ms, err := number("expires", o.expires)
		if err != nil {
			return err
		}
		if ms > 0 { // 0 is never
			m.ExpiresAt = time.UnixMilli(ms)
		}
	case o.expiration != "":
		ms, err := number("expiration", o.expiration)
		if err != nil {
			return err
		}
		m.ExpiresAt = o.c.srv.Writer.Now().Add(time.Duration(min(ms, math.MaxInt64/int64(time.Millisecond)/2)) * time.Millisecond)
	}
	return nil
}

func (o *sendOptions) applyDelay() error {
	var wait time.Duration
	for _, h := range []struct {
		name, value string
	}{{"AMQ_SCHEDULED_DELAY", o.scheduled}, {"AMQ_SCHEDULED_TIME", o.at}, {"x-delay", o.delay}, {"deliver-after", o.deliverAfter}} {
		if h.value == "" {
			continue
		}
		if h.name == "deliver-after" {
			d, err := seconds(h.name, h.value)
			if err != nil {
				return err
			}
			wait = d
			break
		}
		ms, err := number(h.name, h.value)
		if err != nil {
			return err
		}
		if h.name == "AMQ_SCHEDULED_TIME" {
			o.m.ReadyAt = time.UnixMilli(ms)
			return nil
		}
		wait = time.Duration(min(ms, maxDelay.Milliseconds())) * time.Millisecond
		break
	}
	if wait > 0 {
		o.m.ReadyAt = o.c.srv.Writer.Now().Add(wait)
	}
	return nil
}

// number reads a count of milliseconds.
func number(name, value string) (int64, error) {
	n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
	if err != nil || n < 0 || n > 1<<53 {
		return 0, refuse("bad "+name, "%s %.30q; use a number of milliseconds", name, value)
	}
	return n, nil
}

// seconds reads a number of seconds that may have a fraction.
func seconds(name, value string) (time.Duration, error) {
	s, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
	if err != nil || !(s >= 0) || math.IsInf(s, 0) {
		return 0, refuse("bad "+name, "%s %.30q; use a number of seconds such as 30 or 1.5", name, value)
	}
	return time.Duration(min(s, maxDelay.Seconds()) * float64(time.Second)), nil
}
