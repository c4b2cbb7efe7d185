package sim

// shares judges how much of a limit is used and how fairly destinations share.
func (o *oracle) shares() {}
