package mesh.apps.spring;

import java.util.Map;
import mesh.apps.Console;
import mesh.apps.Flags;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.context.annotation.Bean;

/** A Spring Boot web application: {@code --host, --port, --label}. */
@SpringBootApplication
public class Provider {
    private static Flags flags;

    @Bean
    Service service() {
        return new Service(flags.get("label", "v1"));
    }

    public static void main(String[] args) {
        Console console = new Console();
        flags = new Flags(args);
        SpringApplication application = new SpringApplication(Provider.class);
        application.setDefaultProperties(Map.of(
                "server.address", flags.get("host", "127.0.0.1"),
                "server.port", flags.get("port", "8080"),
                "server.max-http-request-header-size", "32KB",
                "spring.jmx.enabled", "false",
                "spring.main.banner-mode", "off",
                "logging.level.root", "WARN"));
        application.run();
        console.provide();
    }
}
