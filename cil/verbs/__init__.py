"""What is done to what was learned: taught more, made to forget, calibrated, judged; each verb gives new values."""
