package stomp

import (
	"strings"
)

// kind is what a destination stands for.
type kind uint8

const (
	noDestination kind = iota
	queueName          // /queue/NAME
	queuePrefix        // /queue/PREFIX*, only to SUBSCRIBE
	pipe               // /pipe: the whole valve
	topicName          // /topic/NAME
	topicPrefix        // /topic/PREFIX*, only to SUBSCRIBE
	tempQueue          // /temp-queue/NAME
	control            // /control/COMMAND
)

// tempPrefix is where temporary queues lie in the pipe.
const tempPrefix = "mvalve.temp."

// destinationHelp lists what exists; it ends every ERROR about a destination.
const destinationHelp = "use /queue/NAME, /queue/PREFIX* or /pipe (SUBSCRIBE), /topic/NAME, /topic/PREFIX* (SUBSCRIBE), " +
	"/temp-queue/NAME, /control/count-msgs/queue/NAME, /control/count-subscribers/queue/NAME or /control/count-subscribers/topic/NAME"

// parseDestination splits a destination into its kind and name; the name shares
// s's memory. Names are opaque: only an asterisk at the end means something.
func parseDestination[T string | []byte](s T) (kind, T) {
	var none T
	cut := func(prefix string) (T, bool) {
		if len(s) >= len(prefix) && string(s[:len(prefix)]) == prefix {
			return s[len(prefix):], true
		}
		return none, false
	}
	starred := func(name T) bool { return len(name) > 0 && name[len(name)-1] == '*' }
	if name, ok := cut("/queue/"); ok && len(name) > 0 {
		if starred(name) {
			return queuePrefix, name[:len(name)-1]
		}
		return queueName, name
	}
	if name, ok := cut("/topic/"); ok && len(name) > 0 {
		if starred(name) {
			return topicPrefix, name[:len(name)-1]
		}
		return topicName, name
	}
	if name, ok := cut("/temp-queue/"); ok && len(name) > 0 {
		return tempQueue, name
	}
	if name, ok := cut("/control/"); ok {
		return control, name
	}
	if string(s) == "/pipe" {
		return pipe, none
	}
	return noDestination, none
}

var globEscaper = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`)

// prefixGlob returns the pattern of all names that begin with prefix.
func prefixGlob(prefix string) string { return globEscaper.Replace(prefix) + "*" }
