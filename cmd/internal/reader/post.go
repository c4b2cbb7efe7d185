package reader

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/mvalve/mvalve/cmd/internal/jsonline"
	"github.com/mvalve/mvalve/valve"
)

const (
	// maxRetryAfter bounds how long an answer can make a destination wait.
	maxRetryAfter = 24 * time.Hour
	// minRetryAfter keeps an answer of 0 from turning into a busy loop: the
	// attempt is not counted.
	minRetryAfter = time.Second
	// maxReply bounds how much of an answer is read, to use the connection again.
	maxReply = 64 << 10
)

// DispatchedAt is the header with the moment of dispatch, on the pipe's clock and
// as in the JSON lines: whoever receives sees how long the request was on its way.
const DispatchedAt = "Mvalve-Dispatched-At"

// hopByHop are the headers of a connection (RFC 9110, section 7.6.1), which a
// message does not carry to the next one, and those that the request itself sets.
var hopByHop = map[string]bool{
	"Connection": true, "Keep-Alive": true, "Proxy-Connection": true, "Proxy-Authenticate": true, "Proxy-Authorization": true,
	"Te": true, "Trailer": true, "Transfer-Encoding": true, "Upgrade": true, "Content-Length": true, "Host": true,
	"Idempotency-Key": true, DispatchedAt: true, "Expect": true,
}

// poster sends each message to a URL.
type poster struct {
	url    string
	client *http.Client
}

func newPoster(o *options) *poster {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConns = 0
	transport.MaxIdleConnsPerHost = o.concurrency
	return &poster{url: o.url, client: &http.Client{
		Transport: transport, Timeout: o.timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// expand puts the escaped destination into a URL, as part of its path or query.
func expand(template, destination string) string {
	return strings.ReplaceAll(template, "{destination}", strings.ReplaceAll(url.QueryEscape(destination), "+", "%20"))
}

func (p *poster) consume(ctx context.Context, d *valve.Delivery) verdict {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, expand(p.url, d.Message.Destination), bytes.NewReader(d.Message.Body))
	if err != nil {
		return verdict{end: dead, reason: "the destination makes no URL"}
	}
	connection, _ := d.Message.Headers.Get("Connection")
	for _, h := range d.Message.Headers {
		name := textproto.CanonicalMIMEHeaderKey(h.Name)
		if hopByHop[name] || named(connection, name) {
			continue
		}
		if !validName(h.Name) || !validValue(h.Value) {
			return verdict{end: dead, reason: fmt.Sprintf("header %.80q cannot be sent over HTTP", h.Name)}
		}
		request.Header.Add(name, h.Value)
	}
	if request.Header.Get("Content-Type") == "" {
		request.Header.Set("Content-Type", "application/octet-stream")
	}
	request.Header.Set("Idempotency-Key", d.Message.ID.String())
	request.Header.Set(DispatchedAt, jsonline.FormatTime(d.DispatchedAt))
	answer, err := p.client.Do(request)
	if err != nil {
		if ctx.Err() != nil {
			return verdict{end: release}
		}
		return verdict{end: retry, delay: -1, reason: err.Error()}
	}
	_, _ = io.CopyN(io.Discard, answer.Body, maxReply) // only to use the connection again
	_ = answer.Body.Close()
	return judge(answer.StatusCode, answer.Header.Get("Retry-After"), time.Now())
}

// validName reports whether name is a token (RFC 9110, section 5.6.2).
func validName(name string) bool {
	return name != "" && !strings.ContainsFunc(name, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
	})
}

// validValue reports whether value has no control characters but tabs.
func validValue(value string) bool {
	return !strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f })
}

// named reports whether a Connection header names another header.
func named(connection, name string) bool {
	for token := range strings.SplitSeq(connection, ",") {
		if strings.EqualFold(strings.TrimSpace(token), name) {
			return true
		}
	}
	return false
}

// judge turns an answer into a verdict. A 429 that does not say how long, and a
// redirect, which is not followed, are tried again: neither says that the message is bad.
func judge(status int, retryAfter string, now time.Time) verdict {
	reason := fmt.Sprintf("HTTP %d %s", status, http.StatusText(status))
	wait, ok := parseRetryAfter(retryAfter, now)
	switch {
	case status >= 200 && status < 300:
		return verdict{end: ack}
	case ok && (status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable):
		return verdict{end: throttled, delay: wait, reason: reason}
	case status >= 400 && status < 500 && status != http.StatusRequestTimeout && status != http.StatusTooManyRequests:
		return verdict{end: dead, reason: reason}
	}
	return verdict{end: retry, delay: -1, reason: reason}
}

// parseRetryAfter reads seconds or a date (RFC 9110, section 10.2.3).
func parseRetryAfter(text string, now time.Time) (time.Duration, bool) {
	if text == "" {
		return 0, false
	}
	var wait time.Duration
	if seconds, err := strconv.ParseInt(text, 10, 64); err == nil {
		wait = time.Duration(max(0, min(seconds, int64(maxRetryAfter/time.Second)))) * time.Second
	} else if at, err := http.ParseTime(text); err == nil {
		wait = at.Sub(now)
	} else {
		return 0, false
	}
	return min(max(wait, minRetryAfter), maxRetryAfter), true
}

func (p *poster) close(context.Context) error {
	p.client.CloseIdleConnections()
	return nil
}
