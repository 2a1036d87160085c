package changefeed

// KeepLittle has readers that are not quite at the end fetch for themselves.
func (f *Feeds) KeepLittle() { f.ring = 1 }
