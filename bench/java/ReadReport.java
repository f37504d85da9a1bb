import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;

/** What a client has read, how long that took and the memory it needs then, as one line of JSON. */
final class ReadReport {
    private ReadReport() {
    }

    static void print(int services, int instances, long startNanos) throws Exception {
        double seconds = (System.nanoTime() - startNanos) / 1e9;
        System.gc();
        Thread.sleep(500);
        long rss = 0;
        for (String line : Files.readAllLines(Path.of("/proc/self/status"), StandardCharsets.UTF_8)) {
            if (line.startsWith("VmRSS:")) {
                rss = Long.parseLong(line.replaceAll("\\D", ""));
            }
        }
        System.out.println("{\"services\": " + services + ", \"instances\": " + instances + ", \"seconds\": " + seconds
            + ", \"rss_mib\": " + rss / 1024.0 + "}");
    }
}
