package mesh.apps.springcloud;

import java.util.Map;
import java.util.TreeMap;
import java.util.stream.Collectors;
import mesh.apps.Console;
import mesh.apps.Flags;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.boot.builder.SpringApplicationBuilder;
import org.springframework.cloud.client.ServiceInstance;
import org.springframework.cloud.client.discovery.DiscoveryClient;
import org.springframework.cloud.client.loadbalancer.LoadBalanced;
import org.springframework.context.ConfigurableApplicationContext;
import org.springframework.context.annotation.Bean;
import org.springframework.web.bind.annotation.GetMapping;
import org.springframework.web.bind.annotation.RestController;
import org.springframework.web.client.RestClient;

/**
 * A Spring Cloud Alibaba application that registers in Nacos: {@code --nacos host:port --name NAME --host IP --port PORT}. It
 * answers {@code GET /who} with its name and port. Commands: {@code find NAME} lists what the DiscoveryClient finds, {@code names}
 * all services, {@code who NAME COUNT} calls a service by its name and counts the answers, {@code quit} leaves in an orderly way.
 */
@SpringBootApplication
@RestController
public class Application {
    private static String label;

    @Bean
    @LoadBalanced
    RestClient.Builder clients() {
        return RestClient.builder();
    }

    @GetMapping("/who")
    String who() {
        return label;
    }

    public static void main(String[] args) {
        Console console = new Console();
        Flags flags = new Flags(args);
        label = flags.require("name") + ":" + flags.require("port");
        ConfigurableApplicationContext context = new SpringApplicationBuilder(Application.class)
                .properties(
                        "spring.main.banner-mode=off",
                        "spring.jmx.enabled=false",
                        "spring.application.name=" + flags.require("name"),
                        "server.address=" + flags.require("host"),
                        "server.port=" + flags.require("port"),
                        "spring.cloud.nacos.discovery.server-addr=" + flags.require("nacos"),
                        "spring.cloud.nacos.discovery.ip=" + flags.require("host"),
                        // What Nacos' client knows is up to date; a second cache of 35 s would hide it.
                        "spring.cloud.loadbalancer.cache.enabled=false",
                        "logging.level.root=WARN")
                .run();
        DiscoveryClient discovery = context.getBean(DiscoveryClient.class);
        RestClient client = context.getBean(RestClient.Builder.class).build();
        console.print("READY");
        for (String line = console.read(); line != null; line = console.read()) {
            String[] words = line.split(" ");
            try {
                switch (words[0]) {
                    case "find" -> console.print(discovery.getInstances(words[1]).stream()
                            .map(Application::describe).sorted().collect(Collectors.joining(" ")));
                    case "names" -> console.print(
                            discovery.getServices().stream().sorted().collect(Collectors.joining(" ")));
                    case "who" -> console.print(who(client, words[1], Integer.parseInt(words[2])));
                    case "quit" -> {
                        context.close();
                        console.print("done");
                        System.exit(0);
                    }
                    default -> console.print("unknown command: " + line);
                }
            } catch (Exception failure) {
                failure.printStackTrace();
                console.print("error " + failure);
            }
        }
        Runtime.getRuntime().halt(0);
    }

    private static String describe(ServiceInstance instance) {
        return instance.getHost() + ":" + instance.getPort();
    }

    private static String who(RestClient client, String name, int count) {
        Map<String, Integer> answers = new TreeMap<>();
        for (int i = 0; i < count; i++) {
            String answer = client.get().uri("http://" + name + "/who").retrieve().body(String.class);
            answers.merge(answer, 1, Integer::sum);
        }
        return answers.toString();
    }
}
