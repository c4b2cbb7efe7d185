package mysql

// The texts whose plans a test asks the server for.
var (
	DestinationsText = destinationsText
	RefillText       = refillText
	ScanText         = scanText
	SessionSettings  = sessionSettings
	SplitStatements  = splitStatements
)
