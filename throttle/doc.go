// Package throttle decides when a message may go: limits and their text form
// ([Limit]), the rules that say which limit a destination has ([Rules] over a
// [RuleStore]), and the permits that all readers of a pipe take from shared
// state ([Limiter] over a [state.Store]).
//
//	limiter := throttle.NewLimiter(throttle.Config{Fast: store})
//	grants := limiter.Take(ctx, now, []throttle.Request{{
//		Destination: "mail.example", Limit: limit, Want: 10,
//	}})
//	for _, p := range grants[0].Permits {
//		// at p.At, not after p.Until:
//		limiter.Dispatched(p, time.Now())
//	}
//
// Never more than Limit.Max dispatches fall into any half-open window of
// Interval+Guard, whatever the number of readers, their clocks (within the order
// of the store), crashes and lost answers. The package controls the time of
// dispatch, not of arrival.
package throttle
