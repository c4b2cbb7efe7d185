// Package valve is the engine: a [Writer] puts messages into a pipe, any number
// of [Reader]s take them out, never faster than each destination's limit.
//
//	w, err := valve.NewWriter(ctx, store, valve.WriterConfig{})
//	err = w.Insert(ctx, &queue.Message{Destination: "mail.example", Body: body})
//
//	r, err := valve.OpenReader(ctx, store, valve.ReaderConfig{})
//	for d, err := range r.All(ctx) {
//		...
//		err = d.Ack(ctx)
//	}
//
// A message is durable when Insert returns and gone when Ack returns; in between
// it is delivered at least once. The package has no driver and no protocol: it
// stands on the ports queue, state and throttle.
package valve
